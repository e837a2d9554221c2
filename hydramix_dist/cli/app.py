"""All commands and their options."""

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from hydramix_dist.cli.app_cluster import jobs_app, submit
from hydramix_dist.cli.app_runs import JsonFlag, runs_app

app = typer.Typer(
    name="hydramix",
    help="Learned mixing of a few labelled images per class: does it make your classifier better, and at what cost?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Import, look at and check image sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
checkpoint_app = typer.Typer(
    help="Look into the checkpoints of a run, check them, take weights out.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(checkpoint_app, name="checkpoint")


class Kind(StrEnum):
    """What `hydramix train` can train."""

    generator = "generator"
    classifier = "classifier"


WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="processes of each training, over Ray and DeepSpeed; none: as in the settings")
]
AddressOption = Annotated[
    str | None, typer.Option(help="a running Ray cluster to train on, HOST:PORT of its head; none: this machine")
]
MetricsOption = Annotated[
    int | None, typer.Option(min=1, max=65000, help="export metrics for Prometheus at this port, or the next free one")
]
TrainingFolder = Annotated[str, typer.Argument(help="folder of a training, also one inside a pilot's folder")]


@app.callback()
def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


@app.command()
def pilot(
    data: Annotated[
        str | None,
        typer.Argument(
            help="folder of class folders, archive, CIFAR or STL binary, or an imported set; none: built-in photos"
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="smoke, quick, standard, paper, or a YAML file")] = "quick",
    shots: Annotated[str | None, typer.Option(help="labelled images a class, for example 5,10")] = None,
    seeds: Annotated[str | None, typer.Option(help="number of seeds, or a list such as 0,1,2")] = None,
    arms: Annotated[str | None, typer.Option(help="arms to run, for example baseline,hydramix")] = None,
    mix: Annotated[int | None, typer.Option(help="K, images in one mix of the HydraMix arms")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="any setting, key=value; may be repeated")] = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    metrics_port: MetricsOption = None,
    out: Annotated[
        str | None, typer.Option(help="folder of the run; none: runs/ and a name made of data and settings")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on with the pilot in --out, with the settings stored there")] = False,
    json_: JsonFlag = False,
) -> None:
    """Compare arms with and without mixing on one image set, and write a report that says whether mixing helped."""
    from hydramix_dist.cli.options import metrics_exported
    from hydramix_dist.cli.pilot import pilot_command

    with metrics_exported(metrics_port):
        code = pilot_command(data, preset, shots, seeds, arms, mix, set_ or [], workers, address, out, resume, json_)
    raise typer.Exit(code)


@app.command()
def train(
    kind: Annotated[Kind, typer.Argument(help="what to train")],
    config: Annotated[str, typer.Argument(help="quick, standard, or a YAML file")],
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="any setting, for example data=FOLDER shots=10")
    ] = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    metrics_port: MetricsOption = None,
    out: Annotated[
        str | None, typer.Option(help="folder of the run; none: runs/ and a name made of data and settings")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Train one generator or classifier, in this process or over several workers; typed again, it goes on."""
    from hydramix_dist.cli.options import metrics_exported
    from hydramix_dist.cli.train import train_command

    with metrics_exported(metrics_port):
        code = train_command(kind.value, config, assignments or [], workers, address, out, json_)
    raise typer.Exit(code)


class _SweepGroup(typer.core.TyperGroup):
    """`hydramix sweep CONFIG` is `hydramix sweep run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before a word that is no sub-command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep_app = typer.Typer(
    cls=_SweepGroup,
    help="Compare over data sets, N, K, masks, seeds and hyperparameters: `hydramix sweep CONFIG [KEY=VALUE]...`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(sweep_app, name="sweep")
SweepName = Annotated[str, typer.Argument(help="folder or URL of a sweep, or its name under runs/")]


@sweep_app.command("run")
def sweep_run(
    config: Annotated[str, typer.Argument(help="smoke, quick, nshot, paper, tuned-baseline, ablation, or a YAML file")],
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="any setting, for example data=FOLDER")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="folder of the sweep; none: runs/ and a name made of data and settings")
    ] = None,
    shared: Annotated[
        str | None, typer.Option(help="folder of generators and imported images; none: `shared` beside the sweep")
    ] = None,
    address: AddressOption = None,
    metrics_port: MetricsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the trainings and their expected cost; train nothing")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Run a sweep in parallel on what the machine or cluster has; typed again, it goes on."""
    from hydramix_dist.cli.options import metrics_exported
    from hydramix_dist.cli.sweep import run_command

    with contextlib.nullcontext() if dry_run else metrics_exported(metrics_port):
        code = run_command(config, assignments or [], out, shared, address, dry_run, json_)
    raise typer.Exit(code)


@sweep_app.command("status")
def sweep_status(name: SweepName, json_: JsonFlag = False) -> None:
    """Show where a sweep stands, from any machine that can read its folder."""
    from hydramix_dist.cli.sweep import status_command

    raise typer.Exit(status_command(name, json_))


@sweep_app.command("resume")
def sweep_resume(
    name: SweepName,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="limits, priorities, distributed or concurrent"),
    ] = None,
    address: AddressOption = None,
    metrics_port: MetricsOption = None,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="try what has failed for good once more, and nothing else")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Go on with a sweep; what is finished is not run again."""
    from hydramix_dist.cli.options import metrics_exported
    from hydramix_dist.cli.sweep import resume_command

    with metrics_exported(metrics_port):
        code = resume_command(name, assignments or [], address, only_failed, json_)
    raise typer.Exit(code)


@sweep_app.command("results")
def sweep_results(
    name: SweepName,
    select: Annotated[
        str | None, typer.Option(help="folder to write the best setting to, as settings for `pilot` and `train`")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="with --select: this arm, not the best one")] = None,
    shots: Annotated[int | None, typer.Option(help="with --select: the N it is for; none: the largest")] = None,
    json_: JsonFlag = False,
) -> None:
    """Write a sweep's tables and page from what is finished so far."""
    from hydramix_dist.cli.sweep import results_command

    raise typer.Exit(results_command(name, select, arm, shots, json_))


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="folder of a pilot, or of one of its classifiers")],
    images: Annotated[str, typer.Argument(help="an image, or a folder of images")],
    arm: Annotated[str | None, typer.Option(help="arm of a pilot to use; none: the one with the best mean")] = None,
    out: Annotated[str | None, typer.Option(help="CSV file to write; none: print")] = None,
    json_: JsonFlag = False,
) -> None:
    """Classify new images with a finished run: one line an image with class and probability."""
    from hydramix_dist.cli.predict import predict_command

    raise typer.Exit(predict_command(run, images, arm, out, json_))


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="folders of pilots; several make one comparing page")],
    out: Annotated[
        str | None, typer.Option(help="folder of the page; none: the pilot's own, or here for several")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Write a pilot's page anew from its results, or one page over several pilots."""
    from hydramix_dist.cli.report import report_command

    raise typer.Exit(report_command(runs, out, json_))


@app.command()
def doctor(
    folder: Annotated[str, typer.Argument(help="where runs will be written")] = ".",
    store: Annotated[
        str | None, typer.Option(help="URL at which to try what its credentials permit: list, get, put, delete")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Check this machine, and a store: what works, what is missing, how to mend it."""
    from hydramix_dist.cli.doctor import doctor_command

    raise typer.Exit(doctor_command(folder, store, json_))


@app.command()
def exporter(
    port: Annotated[
        int | None, typer.Option(min=1, max=65000, help="of the endpoint; none: HYDRAMIX_METRICS' port, else 9464")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="address to listen on, 0.0.0.0 for all; none: HYDRAMIX_METRICS' host")
    ] = None,
) -> None:
    """Serve this node's metrics to Prometheus until Ctrl-C or SIGTERM, whether something trains or not."""
    from hydramix_dist.cli.exporter import exporter_command

    raise typer.Exit(exporter_command(port, host))


@data_app.command("import")
def data_import(
    src: Annotated[str, typer.Argument(help="folder of class folders, zip or tar of one, CIFAR-10/-100, STL-10")],
    dst: Annotated[str, typer.Argument(help="folder or URL to write the image set to")],
    size: Annotated[
        int | None, typer.Option(help="stored side; none: native where square, equal and at most 96, else 64")
    ] = None,
    fit: Annotated[str, typer.Option(help="crop (short side, centre crop) or letterbox")] = "crop",
    holdout: Annotated[
        float, typer.Option(help="share of each class held out for testing where the source has no test part")
    ] = 0.5,
    licence: Annotated[Path | None, typer.Option(help="text file with the licence, kept in the manifest")] = None,
    segment_side: Annotated[
        int | None, typer.Option(help="side at which segments are made; none: chosen from the size")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Import images once: checked, decoded, segmented, written as Parquet shards with a manifest."""
    from hydramix_dist.cli.data import import_command

    raise typer.Exit(import_command(src, dst, size, fit, holdout, licence, segment_side, json_))


@data_app.command("show")
def data_show(
    url: Annotated[str, typer.Argument(help="an imported image set")],
    shots: Annotated[str | None, typer.Option(help="also warn of classes with fewer images than this")] = None,
    json_: JsonFlag = False,
) -> None:
    """Show classes, counts, sizes and warnings (duplicates, leaks between train and test, imbalance)."""
    from hydramix_dist.cli.data import show_command

    raise typer.Exit(show_command(url, shots, json_))


@data_app.command("verify")
def data_verify(url: Annotated[str, typer.Argument(help="an imported image set")], json_: JsonFlag = False) -> None:
    """Check every file against its recorded sha256; damaged ones are named, and the exit code is then 1."""
    from hydramix_dist.cli.data import verify_command

    raise typer.Exit(verify_command(url, json_))


@checkpoint_app.command("show")
def checkpoint_show(run: TrainingFolder, json_: JsonFlag = False) -> None:
    """Show what is inside each checkpoint: images seen, engines, step, weights, bytes, score, whole or broken."""
    from hydramix_dist.cli.checkpoint import show_command

    raise typer.Exit(show_command(run, json_))


@checkpoint_app.command("verify")
def checkpoint_verify(run: TrainingFolder, json_: JsonFlag = False) -> None:
    """Check every file of every checkpoint against its recorded sha256; damaged ones are named, exit code 1."""
    from hydramix_dist.cli.checkpoint import verify_command

    raise typer.Exit(verify_command(run, json_))


@checkpoint_app.command("export")
def checkpoint_export(
    run: TrainingFolder,
    dst: Annotated[str, typer.Argument(help="file to write, NAME.safetensors")],
    engine: Annotated[
        str | None, typer.Option(help="generator, discriminator or classifier; none: the model the run is named by")
    ] = None,
    images: Annotated[int | None, typer.Option(help="images seen at the checkpoint; none: the newest")] = None,
    json_: JsonFlag = False,
) -> None:
    """Write the weights of one model as a plain safetensors file, with a header that says what they are."""
    from hydramix_dist.cli.checkpoint import export_command

    raise typer.Exit(export_command(run, dst, engine, images, json_))


app.command()(submit)
app.add_typer(jobs_app, name="jobs")
app.add_typer(runs_app, name="runs")
