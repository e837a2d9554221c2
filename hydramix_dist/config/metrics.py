"""How metrics are exported: one block of settings for every command and process, from the environment."""

import json
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hydramix_dist.config.base import Settings
from hydramix_dist.config.load import build, parse, read_yaml
from hydramix_dist.errors import UserError

VARIABLE = "HYDRAMIX_METRICS"


class MetricsSettings(Settings):
    """Metrics for Prometheus: one endpoint a node, which the first process that records there starts."""

    port: Annotated[
        int | None,
        Field(ge=1, le=65000, description="of the endpoint, the next free one where it is taken; null: none"),
    ] = None
    host: Annotated[str, Field(description="address that the endpoint listens on; 0.0.0.0: all of the machine's")] = (
        "127.0.0.1"
    )
    targets: Annotated[
        str, Field(description="folder in which an endpoint writes its address, for Prometheus to find it")
    ] = "/tmp/hydramix-metrics"
    expire: Annotated[
        float, Field(gt=0, description="seconds for which series of a finished run stay, and an endpoint that is idle")
    ] = 300.0


def metrics_settings() -> MetricsSettings:
    """Return the settings that HYDRAMIX_METRICS holds: the path of a YAML file, or a mapping such as `{port: 9464}`.

    Raises UserError where they are wrong.
    """
    text = os.environ.get(VARIABLE, "")
    if not text.strip():
        return MetricsSettings()
    inline = text.lstrip().startswith("{")
    try:
        tree = parse(text, VARIABLE) if inline else read_yaml(Path(text).expanduser())
    except UserError as error:
        raise error if inline else UserError(f"{VARIABLE}: {error}") from error
    return build(MetricsSettings, tree, VARIABLE if inline else f"{VARIABLE} ({text})")


def portable_metrics() -> dict[str, str]:
    """Return the environment that gives another machine's process the same settings; none where nothing is exported."""
    settings = metrics_settings()
    return {} if settings.port is None else {VARIABLE: json.dumps(settings.model_dump())}
