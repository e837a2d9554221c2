"""What this process asked of object storage and of its node's cache, counted since it began."""

import threading
from dataclasses import dataclass, field


@dataclass
class Traffic:
    """Counters that only grow; threads may count at once."""

    requests: int = 0  # tries included
    retries: int = 0
    read_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, **more: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)

    def values(self) -> dict[str, int]:
        """Return the counters by name."""
        return {
            name: getattr(self, name) for name in ("requests", "retries", "read_bytes", "cache_hits", "cache_misses")
        }


traffic = Traffic()
