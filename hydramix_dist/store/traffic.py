"""What this process asked of object storage and of its node's cache, counted since it began."""

import threading
from collections import Counter
from collections.abc import Mapping

# Retries are counted by cause as well, as "retries.CAUSE".
_NAMES = ["requests", "retries", "given_up", "read_bytes", "written_bytes", "cache_hits", "cache_misses"]
_NAMES += ["stall_seconds", "checksum_failures", "verification_failures"]


class Traffic:
    """Counters that only grow; threads may count at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter(dict.fromkeys(_NAMES, 0))

    def count(self, **more: float) -> None:
        """Add to counters by name."""
        with self._lock:
            self._counts.update(more)

    def retry(self, cause: str) -> None:
        """Count a request that is tried again."""
        self.count(**{"retries": 1, f"retries.{cause}": 1})

    def values(self) -> dict[str, float]:
        """Return the counters by name."""
        with self._lock:
            return dict(self._counts)


traffic = Traffic()


def since(before: Mapping[str, float]) -> dict[str, float]:
    """Return what was counted since `before`, which `values` gave, by name."""
    return {name: value - before.get(name, 0) for name, value in traffic.values().items()}
