"""Consumer groups: who is a member, which member has which partition, and who may read it. docs/consumer-groups.md."""
