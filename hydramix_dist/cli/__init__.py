"""The command `hydramix`: it parses, calls one library function, and shows what that returns.

Nothing heavy is imported before a command is chosen, so that `hydramix --help` answers at once.
"""

import sys


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 bad input, 130 stopped on request."""
    import click

    from hydramix_dist.cli.app import app
    from hydramix_dist.errors import Interrupted, UserError

    try:
        code = app(standalone_mode=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Interrupted as stopped:
        print(str(stopped), file=sys.stderr)
        code = 130
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
