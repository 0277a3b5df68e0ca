"""lm-eval's own command, to which the model `quietstar` has been made known; see `quietstar.evaluation.harness`."""

import sys

from quietstar.errors import QuietStarError


def main() -> int:
    """Run it. Exit code 2 where something needs the user, said in one line."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import quietstar.evaluation.harness  # noqa: F401  (makes the name known)

        cli_evaluate()
    except QuietStarError as error:
        print(f"quietstar.evaluation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
