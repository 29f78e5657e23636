"""The server with a look at the affinity every 50 ms, started as `python -m tests.supervisor.eager_server`."""

import sys

import shardserver.supervisor.supervisor
from shardserver.cli.main import main

shardserver.supervisor.supervisor.AFFINITY_CHECK_S = 0.05

if __name__ == "__main__":
    sys.exit(main())
