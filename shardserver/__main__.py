import sys

from shardserver.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
