"""Where the driver of a training, Ray Train's controller and the workers leave word for each other: a small actor.

Plain values go through it, in short calls that wait for nothing.
"""

from dataclasses import dataclass, field

from hydramix_dist.errors import Interrupted


@dataclass(frozen=True)
class Worker:
    """A process of a training: its rank, among how many, where it runs and where it logs."""

    rank: int
    of: int
    process: int
    address: str
    node: str  # Ray's id of it
    log: str


@dataclass(frozen=True)
class Failure:
    """What befell a worker. `first` says how near it is to the cause: of several, the lowest ones tell it."""

    first: int
    text: str


@dataclass(frozen=True)
class Losses:
    """A failure of the workers, told as (rank, the worker if it had come to work, what befell it)."""

    told: tuple[tuple[int, Worker | None, str], ...]


@dataclass(frozen=True)
class News:
    """What the driver has not heard yet: progress in (images, total), and what happened, in order."""

    progress: tuple[int, int] | None
    happened: tuple[Losses | tuple[Worker, ...] | str, ...]  # losses; all workers at work (again); a worker's warning
    ending: Exception | None
    working: bool


@dataclass
class Desk:
    """The actor. Whoever calls a method is named with it."""

    _stop: bool = False
    _ending: Exception | None = None
    _progress: tuple[int, int] | None = None
    _happened: list[Losses | tuple[Worker, ...] | str] = field(default_factory=list)
    _crew: dict[int, Worker] = field(default_factory=dict)
    _lost: bool = False

    def look(self, stop: bool) -> News:
        """Driver: ask the workers to stop or not, and return the news."""
        self._stop = self._stop or stop
        news = News(self._progress, tuple(self._happened), self._ending, working=bool(self._crew))
        self._progress = None
        self._happened.clear()
        return news

    def join(self, worker: Worker) -> None:
        """Worker: begin to work."""
        if worker.rank in self._crew:  # a new group, though none was lost: the number of workers was changed
            self._crew.clear()
        self._lost = False
        self._crew[worker.rank] = worker
        if len(self._crew) == worker.of:
            self._happened.append(tuple(self._crew[rank] for rank in sorted(self._crew)))

    def exchange(self, progress: tuple[int, int] | None, warnings: list[str]) -> bool:
        """Worker of rank 0: leave word, and return whether to stop."""
        self._progress = progress or self._progress
        self._happened += warnings
        return self._stop

    def end(self, error: Exception) -> bool:
        """Worker: return whether this ends the training for good; not so an interruption that nobody here asked for."""
        if isinstance(error, Interrupted) and not self._stop:
            return False
        self._ending = self._ending or error
        return True

    def lose(self, failures: dict[int, Failure]) -> bool:
        """Controller: tell of failed workers, and return whether that is the end, so that none is started again."""
        final = self._stop or self._ending is not None
        if not final and not self._lost:  # the controller may find the same failures several times
            nearest = min(failure.first for failure in failures.values())
            told = [
                (rank, self._crew.get(rank), failure.text)
                for rank, failure in sorted(failures.items())
                if failure.first == nearest
            ]
            self._happened.append(Losses(tuple(told)))
        self._crew.clear()
        self._lost = True
        return final
