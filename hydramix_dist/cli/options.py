"""Values of options that more than one command takes."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from hydramix_dist.cli.console import error_console
from hydramix_dist.config.load import configs_root
from hydramix_dist.config.metrics import VARIABLE, MetricsSettings, metrics_settings
from hydramix_dist.errors import UserError, nearest
from hydramix_dist.telemetry.starting import ensure_exporter


@contextlib.contextmanager
def metrics_exported(port: int | None) -> Iterator[None]:
    """Have this process and all that it starts export metrics while the block runs, and say where.

    At `port`, else as HYDRAMIX_METRICS says, which may be not at all. What cannot be exported stops nothing.
    """
    before = os.environ.get(VARIABLE)
    settings = metrics_settings()
    if port is not None:
        settings = settings.model_copy(update={"port": port})
    try:
        if settings.port is not None:
            os.environ[VARIABLE] = json.dumps(settings.model_dump())  # whole: its file may change under a long run
            _say_where(settings)
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def _say_where(settings: MetricsSettings) -> None:
    hello = ensure_exporter(settings)
    if hello is None:  # which is logged
        return
    taken = f" (port {settings.port} is in use)" if hello.taken else ""
    lines = [f"metrics at {hello.url}{taken}"]
    if not hello.targets:
        lines.append("Prometheus will not find them by itself: the exporter could not write its file of targets")
    elif Path(hello.targets).parent != Path(settings.targets).expanduser().absolute():
        lines.append(f"Prometheus finds them by {hello.targets}, for this machine's exporter runs already")
    kept = {"host": hello.host, "expire": hello.expire}
    if kept != {"host": settings.host, "expire": settings.expire}:
        lines.append(f"this machine's exporter runs already, with host {hello.host} and expire {hello.expire:g}")
    for line in lines:
        error_console().print(line, highlight=False, markup=False, soft_wrap=True)


def settings_file(option: str, folder: str, name: str) -> Path:
    """Return the file of ready settings of that name in `configs/<folder>`, or the YAML file that is named.

    Raises UserError naming the option where there is no such name.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    ready = {file.stem: file for file in sorted((configs_root() / folder).glob("*.yaml"))}
    if name not in ready:
        raise UserError(
            f"{option} '{name}' is not known{nearest(name, ready)}; there are {', '.join(ready)}, or a .yaml file"
        )
    return ready[name]


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the numbers in a text such as "5,10". Raises UserError naming the option."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"{option} '{text}' is not a list of whole numbers such as 5,10") from error
