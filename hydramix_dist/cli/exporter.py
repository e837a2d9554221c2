"""The command `hydramix exporter`."""

from pathlib import Path

from hydramix_dist.config.metrics import metrics_settings
from hydramix_dist.telemetry.exporter import serve
from hydramix_dist.telemetry.wire import Hello

DEFAULT_PORT = 9464  # the customary one of exporters that are part of a program


def exporter_command(port: int | None, host: str | None) -> int:
    """Show metrics until Ctrl-C or SIGTERM, with what is not given as HYDRAMIX_METRICS says; return 0."""
    settings = metrics_settings()
    wanted = port or settings.port or DEFAULT_PORT

    targets = Path(settings.targets).expanduser().absolute()

    def ready(hello: Hello) -> None:
        taken = f" (port {wanted} is in use)" if hello.taken else ""
        found = f"finds them by {hello.targets}" if hello.targets else f"does not find them: {targets} takes no file"
        print(f"metrics at {hello.url}{taken}; Prometheus {found}", flush=True)

    serve(wanted, host or settings.host, targets, settings.expire, True, ready)
    return 0
