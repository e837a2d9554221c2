"""The commands that work with a cluster from outside, and their options."""

from pathlib import Path
from typing import Annotated

import typer

from hydramix_dist.cli.app_runs import JsonFlag

DashboardOption = Annotated[
    str | None,
    typer.Option("--address", help="the cluster's dashboard, http://HEAD:8265; none: RAY_API_SERVER_ADDRESS"),
]
JobId = Annotated[str, typer.Argument(help="id of a job, as `hydramix jobs list` shows it")]

jobs_app = typer.Typer(
    help="Look at the jobs on a cluster, read their output, stop them.", no_args_is_help=True, rich_markup_mode=None
)


def submit(
    job: Annotated[str, typer.Argument(help="import_data, pilot, train_generator, train_classifier, sweep or report")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="CONFIG and then KEY=VALUE, data=URL among them; import_data: SRC DST; report: RUN...",
        ),
    ] = None,
    address: DashboardOption = None,
    out: Annotated[
        str | None, typer.Option(help="URL of the run's folder, or the absolute path of one that all nodes share")
    ] = None,
    shared: Annotated[
        str | None, typer.Option(help="of a sweep: URL for generators and imported images; none: beside the sweep")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="last part of the job's id; none: made of job, settings, data and --out")
    ] = None,
    cluster_file: Annotated[
        Path | None,
        typer.Option(help="launcher file or RayCluster manifest: what an autoscaler may start counts as room"),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="return once the job is submitted")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the `ray job submit` command; submit nothing")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Submit a job to a Ray cluster and follow it; typed again, it joins the job, or goes on where it was lost."""
    from hydramix_dist.cli.submit import submit_command

    raise typer.Exit(
        submit_command(job, words or [], address, out, shared, name, cluster_file, not no_wait, dry_run, json_)
    )


@jobs_app.command("list")
def jobs_list(address: DashboardOption = None, json_: JsonFlag = False) -> None:
    """Show the jobs that the cluster knows: id, state, times and output folder."""
    from hydramix_dist.cli.jobs import list_command

    raise typer.Exit(list_command(address, json_))


@jobs_app.command("logs")
def jobs_logs(
    job_id: JobId,
    address: DashboardOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="go on until the job ends; Ctrl-C leaves it running")
    ] = False,
) -> None:
    """Print what a job has said."""
    from hydramix_dist.cli.jobs import logs_command

    raise typer.Exit(logs_command(job_id, address, follow))


@jobs_app.command("stop")
def jobs_stop(job_id: JobId, address: DashboardOption = None) -> None:
    """Have a job save and stop, and wait for that; submitted again, it goes on."""
    from hydramix_dist.cli.jobs import stop_command

    raise typer.Exit(stop_command(job_id, address))
