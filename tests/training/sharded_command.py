"""The `quietstar` command with models sharded over CPUs: what a launcher starts in tests."""

import sys

from quietstar.cli import main
from tests.several import shard_on_cpus

if __name__ == "__main__":
    shard_on_cpus()
    sys.exit(main())
