"""Settings of all tests."""

from hypothesis import settings

# A busy machine is slow at times; an example that took long is no failure.
settings.register_profile("shardserver", deadline=None)
settings.load_profile("shardserver")
