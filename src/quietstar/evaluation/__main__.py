"""lm-eval's own command with the model `quietstar` registered; see `quietstar.evaluation.harness`."""

import sys

from quietstar.errors import QuietStarError


def main() -> int:
    """Run lm-eval and return the exit code: 2 for an error that the user can fix, printed on one line."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import quietstar.evaluation.harness  # noqa: F401  (registers the model)

        cli_evaluate()
    except QuietStarError as error:
        print(f"quietstar.evaluation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
