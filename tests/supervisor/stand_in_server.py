"""A supervisor over stand-ins for shards, started as `python -m tests.supervisor.stand_in_server --cores 4`."""

import sys

import shardserver.cli.main
import shardserver.supervisor.supervisor
from tests.supervisor.stand_in import run_stand_in

shardserver.cli.main.only_one_shard = lambda config, choice: choice

if __name__ == "__main__":
    made = shardserver.supervisor.supervisor.Supervisor
    made.__init__.__defaults__ = (run_stand_in, None)  # type: ignore[misc]
    sys.exit(shardserver.cli.main.main())
