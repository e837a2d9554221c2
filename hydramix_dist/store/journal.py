"""An object that grows by lines; in object storage, where none can grow, it is rewritten now and then."""

import contextlib
import logging
import threading
from types import TracebackType

from hydramix_dist.errors import StoreAwayError
from hydramix_dist.store.disk import disk_errors_as_answers
from hydramix_dist.store.store import Store

REWRITE_SECONDS = 30.0  # our choice: a loss of so much of a curve is no loss, and a rewrite costs one request
_log = logging.getLogger("hydramix")


class Journal:
    """Appends lines to one object, to be used as a context manager.

    On a disk each line is there at once. Elsewhere lines are kept in memory, with what the object held before, and the
    object is rewritten by a thread at most every REWRITE_SECONDS, and at the end. A rewrite that fails is tried again
    with the next; only at the end is its error raised.
    """

    def __init__(self, store: Store, path: str, every: float = REWRITE_SECONDS) -> None:
        """Bind to the object, which one process at a time may write; nothing is read or written yet."""
        self._store, self._path, self._every = store, path, every
        self._local = store.local_path(path)
        self._text = bytearray()
        self._written = 0  # bytes of the text that the object holds
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._rewrite_now_and_then, name="journal", daemon=True)

    def write(self, line: bytes) -> None:
        """Append one line, which ends with a line feed. Raises UserError where a disk refuses it."""
        if self._local is None:
            with self._lock:
                self._text += line
            return
        with disk_errors_as_answers(str(self._local)):
            self._local.parent.mkdir(parents=True, exist_ok=True)
            with self._local.open("ab") as file:
                file.write(line)

    def flush(self) -> None:
        """Have all lines in the object when this returns. Raises what the store raises."""
        if self._local is None:
            self._rewrite()

    def __enter__(self) -> "Journal":
        if self._local is None:
            with contextlib.suppress(FileNotFoundError):
                self._text += self._store.read(self._path)
            self._written = len(self._text)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._local is not None:
            return
        self._over.set()
        self._thread.join()
        if isinstance(error, StoreAwayError):  # which another try would wait for as long again
            _log.warning("besides, the last lines of %s were not written", self._store.path(self._path))
            return
        try:
            self._rewrite()
        except Exception as unwritten:
            if error is None:
                raise
            _log.error("besides, the last lines of %s were not written: %s", self._store.path(self._path), unwritten)

    def _rewrite_now_and_then(self) -> None:
        failing = False
        while not self._over.wait(self._every):
            try:
                self._rewrite()
                failing = False
            except Exception as error:  # no reason to end a training, and not the last try
                if not failing:
                    _log.warning("%s cannot be written now (%s)", self._store.path(self._path), error)
                failing = True

    def _rewrite(self) -> None:
        with self._writing:  # an older text must not come after a newer one
            with self._lock:
                text = bytes(self._text)
            if len(text) > self._written:
                self._store.put(self._path, text)
                self._written = len(text)
