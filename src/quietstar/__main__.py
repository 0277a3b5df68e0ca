"""`python -m quietstar` is the `quietstar` command."""

import sys

from quietstar.cli import main

sys.exit(main())
