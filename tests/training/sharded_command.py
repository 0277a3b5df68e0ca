"""The `quietstar` command with models sharded over CPUs: what a launcher starts in tests."""

import sys

from cpu_shards import shard_on_cpus

from quietstar.cli import main

if __name__ == "__main__":
    shard_on_cpus()
    sys.exit(main())
