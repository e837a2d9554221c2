"""The commands that list and delete runs, and their options."""

from typing import Annotated

import typer

runs_app = typer.Typer(
    help="See which runs a folder or bucket holds, delete what nobody needs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object for machines")]


@runs_app.command("list")
def runs_list(
    place: Annotated[str, typer.Argument(help="folder or URL that holds runs, at any depth")] = "runs",
    json_: JsonFlag = False,
) -> None:
    """Show the runs of a folder or bucket: kind, state, last word, size, checkpoints, and which others need them."""
    from hydramix_dist.cli.runs import list_command

    raise typer.Exit(list_command(place, json_))


@runs_app.command("delete")
def runs_delete(
    runs: Annotated[list[str], typer.Argument(help="folders or URLs of runs; with --older-than: of places with runs")],
    older_than: Annotated[
        str | None, typer.Option(help="of runs that ended so long ago, what nobody needs: 12h, 30d, 8w")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="with --older-than: whole runs, not checkpoints alone")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do it; else it is only shown")] = False,
    json_: JsonFlag = False,
) -> None:
    """Show, and with --yes delete, whole runs, or what nobody needs of old ones; a run that is needed stays."""
    from hydramix_dist.cli.runs import delete_command

    raise typer.Exit(delete_command(runs, older_than, whole, yes, json_))
