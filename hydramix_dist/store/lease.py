"""One writer a run folder: a lock of this machine on a disk, a lease in object storage.

The lease is the objects `lease/000001.json`, `lease/000002.json`, ...: whoever made the highest number is the writer,
and taking over is making the next one, which a conditional put lets exactly one process do. The writer puts its object
anew every BEAT seconds; whoever sees it unchanged for EXPIRY seconds may take over. No clock is compared with another
machine's. A number is removed only once a higher one is there, so that none comes twice.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from hydramix_dist.errors import Interrupted, StoreAwayError, UserError
from hydramix_dist.store.disk import disk_errors_as_answers, refusals_as_answers
from hydramix_dist.store.store import Store

BEAT = 10.0  # seconds from one sign of life to the next; each costs two requests
EXPIRY = 35.0  # so three signs may be late or fail before another machine takes over
_FOLDER = "lease"
_log = logging.getLogger("hydramix")


class HeldError(UserError):
    """Another process holds the run folder."""


class Held:
    """A run folder that this process holds for itself, unless another one takes it over."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._taker: str | None = None
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def lost(self) -> bool:
        """Return whether another process has taken the folder over."""
        return self._taker is not None

    def check(self) -> None:
        """Raise UserError where another process has taken the folder over: nothing may be written there any more."""
        if self._taker is not None:
            raise UserError(f"another process on {self._taker} has taken over {self._url}; this one ends")

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have `call` made, from any thread, once another process has taken the folder over."""
        with self._lock:
            self._calls.append(call)
            lost = self.lost
        if lost:
            call()

    def lose(self, taker: str) -> None:
        """Note that a process on the machine `taker` has taken the folder over."""
        with self._lock:
            self._taker = taker
            calls = list(self._calls)
        for call in calls:
            call()


@contextlib.contextmanager
def exclusively(store: Store) -> Iterator[Held]:
    """Hold a run folder for this process while the block runs; a process that is killed holds it no longer.

    Raises UserError where another process holds it. In object storage it takes EXPIRY seconds to find out whether an
    owner on another machine still lives, and this process may lose the folder to another one while the block runs, if
    it cannot write there for so long; then the block is to end, and UserError is raised at its end.
    """
    path = store.local_path(".lock")
    with Lease(store) if path is None else _locked(store, path) as held:
        try:
            yield held
        except Interrupted:
            held.check()
            raise
        held.check()


def is_held(store: Store) -> bool | None:
    """Return whether a process holds a run folder now; None where only a process on another machine could tell.

    Raises UserError where that may not be looked at.
    """
    path = store.local_path(".lock")
    if path is None:
        return Lease(store).is_held()
    try:
        with refusals_as_answers(str(path)), path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def _locked(store: Store, path: Path) -> Iterator[Held]:
    with contextlib.ExitStack() as stack:
        while True:
            with disk_errors_as_answers(str(path)):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HeldError(
                    f"another process is running in {store.url}; wait for it, or choose another folder"
                ) from error
            # The folder may have been deleted since the file was opened, and others would lock a new one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    break
        yield Held(store.url)


@dataclass(frozen=True)
class _Sign:
    """What a lease's object says: whose it is, how many signs of life it has given, whether it is given up.

    `machine` is the same for two processes only where each finds the other under /proc.
    """

    owner: str
    host: str
    machine: str
    pid: int
    started: int
    beat: int = 0
    released: bool = False

    @property
    def lives_here(self) -> bool | None:
        """Return whether its process runs, None where that cannot be told from here."""
        return None if self.machine != _machine() else _started(self.pid) == self.started


class Lease:
    """The lease of a run folder in object storage; as a context manager it gives a `Held`."""

    def __init__(self, store: Store, beat: float = BEAT, expiry: float = EXPIRY) -> None:
        """Bind to the folder; nothing is read or written yet. Times are in seconds."""
        self._store, self._beat, self._expiry = store, beat, expiry
        self._held = Held(store.url)
        pid = os.getpid()
        self._mine = _Sign(uuid.uuid4().hex, socket.gethostname(), _machine(), pid, _started(pid) or 0)
        self._number = self._beats = 0
        self._failing = False  # the last sign of life could not be given
        self._shown = 0.0  # monotonic time before which nobody can have seen the last sign of life
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Held:
        number, text = self._highest()
        while not self._is_mine(text):
            if self._may_take_over(number, text):
                self._take(number + 1)
            number, text = self._highest()
        self._number = number
        self._thread.start()
        return self._held

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self._held.lost or self._failing or isinstance(error, StoreAwayError):
            return
        try:
            self._put(released=True)
            for number in self._numbers():
                if number < self._number:
                    self._store.delete(_name(number))
        except Exception as unmarked:  # the block is over, well or not, and its own end is what counts
            _log.warning("%s could not be marked as free (%s)", self._store.url, unmarked)

    def is_held(self) -> bool | None:
        """Return whether somebody holds the folder, None where that cannot be told from here at once."""
        sign = _parse(self._highest()[1])
        return False if sign is None or sign.released else sign.lives_here

    # ---- taking over

    def _take(self, number: int) -> None:
        """Try to make the object of that number. Who has won is seen by looking: an answer may get lost."""
        began = time.monotonic()
        self._store.put_if_absent(_name(number), self._text())
        self._shown = began

    def _own_the_highest(self) -> bool:
        """Return whether the highest number is this process's, which then holds the folder under it."""
        number, text = self._highest()
        if self._is_mine(text):
            self._number = number
        return self._is_mine(text)

    def _is_mine(self, text: bytes) -> bool:
        sign = _parse(text)
        return sign is not None and sign.owner == self._mine.owner

    def _may_take_over(self, number: int, text: bytes) -> bool:
        """Return whether the owner of a number is gone; False: look again. Raises UserError where it is there."""
        sign = _parse(text)
        if number == 0 or (sign is not None and (sign.released or sign.lives_here is False)):
            return True
        if sign is not None and sign.lives_here:
            raise self._taken(sign)
        host = "another machine" if sign is None else sign.host
        _log.warning("waiting up to %g s to see whether %s still writes into %s", self._expiry, host, self._store.url)
        began = time.monotonic()
        while time.monotonic() - began < self._expiry:
            time.sleep(self._beat / 4)
            now_number, now_text = self._highest()
            now = _parse(now_text)
            if now_number == 0 or (now is not None and now.released):
                return False
            if (now_number, now_text) != (number, text):
                raise self._taken(now)
        return True

    def _taken(self, sign: _Sign | None) -> HeldError:
        who = "" if sign is None else f" (process {sign.pid} on {sign.host})"
        return HeldError(f"another process is running in {self._store.url}{who}; wait for it, or choose another folder")

    # ---- holding

    def _keep(self) -> None:
        """Give signs of life until the block is over or the folder is lost; what fails is tried again."""
        began = time.monotonic()
        while not self._over.wait(max(0.0, began + self._beat - time.monotonic())):
            began = time.monotonic()
            try:
                if not self._sign():
                    return
                self._failing = False
            except Exception as error:  # a thread that died of it would give the folder up without a word
                if not self._failing:
                    _log.warning("others cannot see that this process writes into %s (%s)", self._store.url, error)
                self._failing = True

    def _sign(self) -> bool:
        """Give one sign of life; return False, and make it known, where another process has taken over."""
        if max(self._numbers(), default=0) <= self._number:
            if time.monotonic() - self._shown <= self._expiry:
                self._put()
                return True
            # Seen by nobody for so long, it must win the next number as everybody else must.
            self._take(self._number + 1)
        if self._own_the_highest():
            return True
        taker = _parse(self._highest()[1])
        self._held.lose("another machine" if taker is None else taker.host)
        return False

    def _put(self, released: bool = False) -> None:
        began = time.monotonic()
        self._store.put(_name(self._number), self._text(released))
        self._shown = began

    def _text(self, released: bool = False) -> bytes:
        self._beats += 1
        return json.dumps(asdict(self._mine) | {"beat": self._beats, "released": released}).encode()

    # ---- looking

    def _numbers(self) -> list[int]:
        found = (re.fullmatch(rf"{_FOLDER}/(\d+)\.json", path) for path in self._store.list(_FOLDER))
        return [int(match[1]) for match in found if match]

    def _highest(self) -> tuple[int, bytes]:
        """Return the highest number and what its object says, (0, b"") where there is none yet."""
        while True:
            number = max(self._numbers(), default=0)
            if number == 0:
                return 0, b""
            with contextlib.suppress(FileNotFoundError):  # removed since, for a higher one is there
                return number, self._store.read(_name(number))


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:06d}.json"


def _parse(text: bytes) -> _Sign | None:
    """Return what an object says, None where it is none of ours."""
    try:
        return _Sign(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _machine() -> str:
    """Return what is the same for all processes that this one sees: the system since its start, and the container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> int | None:
    """Return when a process was started (clock ticks since the system was), None where none of that number runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
