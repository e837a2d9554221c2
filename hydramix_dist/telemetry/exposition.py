"""Series as a page that Prometheus reads: text over HTTP, by prometheus_client."""

import contextlib
import errno
import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from hydramix_dist.errors import UserError
from hydramix_dist.telemetry.recorder import Histogram, Value
from hydramix_dist.telemetry.series import Shown
from hydramix_dist.telemetry.table import PREFIX, Metric
from hydramix_dist.telemetry.targets import joined

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PORTS = 50  # tried beyond a wanted one that is taken


@contextlib.contextmanager
def served(host: str, port: int, shown: Callable[[], list[Shown]]) -> Iterator[int]:
    """Answer HTTP requests in a thread with what `shown` returns; yield the port, the first free one from `port` on.

    Raises UserError where there is none.
    """
    from prometheus_client import start_http_server

    registry = _registry(shown)
    for candidate in range(port, port + PORTS + 1):
        try:
            server, thread = start_http_server(candidate, host, registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            reason = error.strerror or error
            raise UserError(f"no metrics at {joined(host, candidate)}: {reason}; give another host or port") from error
        try:
            yield candidate
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        return
    raise UserError(f"no metrics at {host}: the ports {port} to {port + PORTS} are all in use; give another port")


def _registry(shown: Callable[[], list[Shown]]) -> "CollectorRegistry":
    """Return a registry that asks `shown` at each scrape."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import Collector

    class Shower(Collector):
        def collect(self) -> Iterator[Family]:
            for metric, rows in shown():
                family = Family(PREFIX + metric.name.removesuffix("_total"), metric.meaning, metric.kind)
                for labels, value in rows:
                    named = dict(zip(metric.labels, labels, strict=True))
                    for suffix, more, number in _samples(metric, value):
                        family.add_sample(PREFIX + metric.name + suffix, named | more, number)
                yield family

    registry = CollectorRegistry()
    registry.register(Shower())
    return registry


def _samples(metric: Metric, value: Value) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield (suffix of the name, further labels, number) of each line of a series."""
    if not isinstance(value, Histogram):
        yield "", {}, value
        return
    for bound, count in zip((*metric.bounds, math.inf), accumulate(value.counts), strict=True):
        yield "_bucket", {"le": "+Inf" if bound == math.inf else str(float(bound))}, count
    yield "_sum", {}, value.sum
    yield "_count", {}, sum(value.counts)
