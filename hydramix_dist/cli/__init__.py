"""The command `hydramix`: it parses, calls one library function, and shows what that returns.

Nothing heavy is imported before a command is chosen, so that `hydramix --help` answers at once.
"""

import sys

from hydramix_dist.errors import Interrupted, UserError


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 bad input, 130 stopped on request."""
    try:
        from hydramix_dist.cli.app import app

        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
