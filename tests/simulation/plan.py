"""What happens in one simulated life: steps drawn from a seed. Each has its own seed, so that any may be dropped."""

from __future__ import annotations

import random
from dataclasses import dataclass

STEPS = 24
# kind: how often, beside the others
WEIGHTS = {
    "clients": 7.0,
    "bulk": 3.0,
    "run": 2.0,
    "create topic": 1.0,
    "create many partitions": 0.5,
    "add partitions": 0.5,
    "delete partitions": 0.5,
    "delete topic": 0.5,
    "purge": 1.0,
    "cut": 1.0,
    "move": 2.5,
    "fail an operation": 1.5,
    "fail a sync": 1.0,
    "fill the disk": 0.7,
    "nearly fill the disk": 0.7,
    "slow disk": 0.5,
    "flip a bit": 1.5,
    "start read-only": 0.7,
    "kill a shard": 1.0,
    "die at an operation": 2.0,
    "die after an error": 1.0,
    "kill all": 0.8,
    "power loss": 1.2,
    "stop": 0.4,
}


@dataclass(frozen=True, slots=True)
class Step:
    kind: str
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """seed: of all that the steps do not draw themselves, such as the order of completions."""

    seed: int
    shards: int
    steps: tuple[Step, ...]

    @classmethod
    def draw(cls, seed: int, steps: int = STEPS, *, without: str = "") -> Plan:
        """without: a kind of step that is not drawn."""
        weights = {kind: weight for kind, weight in WEIGHTS.items() if kind != without}
        chance = random.Random(seed)
        kinds = chance.choices(list(weights), list(weights.values()), k=steps)
        return cls(seed, chance.choice((2, 3)), tuple(Step(kind, chance.getrandbits(32)) for kind in kinds))

    def __str__(self) -> str:
        steps = ", ".join(f"Step({one.kind!r}, {one.seed})" for one in self.steps)
        return f"Plan({self.seed}, {self.shards}, ({steps}{',' if len(self.steps) == 1 else ''}))"
