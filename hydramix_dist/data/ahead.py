"""Reading over a network ahead of its use: many requests under way, results in order, bounded in number and in bytes.

One object after another a store gives a few hundred a second, however small they are, for each is waited for.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hydramix_dist.config.store import store_settings

WINDOW_BYTES = 64 * 2**20  # asked for and not handed on yet
_WINDOW_READS = 4  # times the number of requests: what is there already while whoever reads is busy otherwise

R = TypeVar("R")


def read_ahead(reads: Iterable[tuple[int, Callable[[], R]]]) -> Iterator[R]:
    """Yield what each read gives, in order; a read is the bytes it will take and the call, made in another thread.

    As many run at once as the store's settings allow requests. What a read raises is raised at its place in the order,
    after all that is before it; reads behind it that have not begun are dropped.
    """
    count = store_settings().requests
    waiting: deque[tuple[int, Future[R]]] = deque()
    held = 0
    with ThreadPoolExecutor(count, thread_name_prefix="read-ahead") as threads:
        try:
            for size, read in reads:
                while waiting and (len(waiting) >= _WINDOW_READS * count or held + size > WINDOW_BYTES):
                    freed, future = waiting.popleft()
                    held -= freed
                    yield future.result()
                waiting.append((size, threads.submit(read)))
                held += size
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
