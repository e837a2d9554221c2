"""Runs deleted, or thinned to the checkpoints that somebody may need; first shown, then done.

A run that is being deleted has a mark in its record's place, which goes last: whoever looks at what an interrupted
deletion has left is told, and the same command ends it. The inner trainings' records go before all else that they name.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from hydramix_dist.config.store import store_settings
from hydramix_dist.errors import StoreAwayError, UserError
from hydramix_dist.orchestration.runs import INNER, Run, find_runs, owner_above, owners, strangers_in
from hydramix_dist.store import Store
from hydramix_dist.store.lease import exclusively
from hydramix_dist.store.run import DELETED, mark_deleted, parse_record, read_run, read_status

_AT_ONCE = 8  # runs: whether one on another machine still lives takes half a minute to see


@dataclass(frozen=True)
class Order:
    """What is to go: a whole run, or the checkpoints of its trainings that are named."""

    run: Run
    whole: bool
    checkpoints: tuple[tuple[str, str], ...] = ()  # training ("" is the run itself), folder

    @property
    def bytes(self) -> int:
        """Return how much it frees."""
        if self.whole:
            return self.run.bytes
        gone = tuple(f"{training}/{folder}/".lstrip("/") for training, folder in self.checkpoints)
        return sum(entry.bytes for path, entry in self.run.entries.items() if path.startswith(gone))

    @property
    def users(self) -> dict[str, str]:
        """Return, by URL, the names of the runs that need what it deletes; spare checkpoints are needed by none."""
        return {self.run.url_of(user): user for user in self.run.users} if self.whole else {}


@dataclass
class Plan:
    """What a command would do: its orders, and the runs that stay although it asks for them, each with the reason."""

    orders: list[Order] = field(default_factory=list)
    kept: list[tuple[Run, str]] = field(default_factory=list)


def plan_named(stores: Sequence[Store]) -> Plan:
    """Return the deletion of these runs as a whole.

    Raises UserError for a folder that is no run or must not go: it runs, another run that stays needs it, it is part
    of a pilot or sweep, or others lie in it.
    """
    plan, named = Plan(), {store.url: store for store in map(_plainly, stores)}
    around: dict[str, dict[str, Run]] = {}
    for url, store in named.items():
        _refuse_place(store)
        parse_record(store)
        outer = _beside(url)
        if outer not in around:
            around[outer] = {run.store.url: run for run in find_runs(Store(outer))}
        run = around[outer][url]
        why = _why_not(run, [user for user in run.users if run.url_of(user) not in named])
        if why is not None:
            raise UserError(f"{url} stays: {why}")
        plan.orders.append(Order(run, whole=True))
    return plan


def plan_older(
    places: Sequence[Store],
    seconds: float,
    *,
    whole: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Plan:
    """Return what may go of the runs in these places that ended, or were killed, at least so many seconds ago.

    Checkpoints that nobody needs, or with `whole` all of a run; of an unfinished one that can go on, checkpoints alone.
    What an interrupted deletion has left goes whatever its age. `progress` is told of how many runs out of how many the
    checkpoints are read.
    """
    plan, seen, thinned = Plan(), set[str](), list[Run]()
    for place in map(_plainly, places):
        _refuse_part(place)
        runs = [run for run in _runs_below(place, with_users=whole) if run.store.url not in seen]
        seen |= {run.store.url for run in runs}
        old = [run for run in runs if run.ended and time.time() - run.word >= seconds]
        half = [run for run in runs if run.state == DELETED]
        going = _going([*half, *(run for run in old if whole and _may_go(run))])
        names = {run.name for run in going}
        staying = [run for run in old if run.name not in names]
        plan.orders += [Order(run, whole=True) for run in going]
        plan.kept += [(run, f"its record cannot be read: {run.reason}") for run in runs if run.state == "damaged"]
        plan.kept += [(run, str(_why_not(run, _users_but(run, names)))) for run in half if run.name not in names]
        if whole:
            plan.kept += [(run, _why_thinned(run, names)) for run in staying]
        thinned += staying
    _thin(plan, thinned, progress)
    return plan


def carry_out(plan: Plan) -> Iterator[tuple[Order, str | None]]:
    """Yield each order as it is done, with the reason where it could not be; several at a time.

    A run goes once those that need it have gone, and not where one of them stays.
    """
    waiting = {order.run.store.url: order for order in plan.orders}
    running: dict[Future[None], Order] = {}
    stayed: set[str] = set()
    threads = ThreadPoolExecutor(_AT_ONCE)
    try:
        while waiting or running:
            for order in _next(waiting, running.values()):
                url = order.run.store.url
                del waiting[url]
                users = [name for user, name in order.users.items() if user in stayed]
                if users:
                    stayed.add(url)
                    yield order, f"{_needed(users)} and could not be deleted"
                else:
                    running[threads.submit(_do, order)] = order
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                order, error = running.pop(future), future.exception()
                if error is not None and not isinstance(error, UserError):
                    raise error
                if error is not None:
                    stayed.add(order.run.store.url)
                yield order, None if error is None else str(error)
    finally:
        threads.shutdown(cancel_futures=True)


# ---- what there is


def _plainly(store: Store) -> Store:
    """Return a folder under the path by which a listing of what lies around it names it.

    That is without links, `..` or `//` before its name; a link that is the folder itself stays one, to be refused.
    """
    path = store.local_path()
    if path is None:
        return store
    plain = path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    return store if store.url == str(plain) else Store(plain)


def _runs_below(place: Store, *, with_users: bool) -> list[Run]:
    """Return the runs in a place; if asked for, with those around it that need them (see `_beside`)."""
    runs = find_runs(place)
    wider = {outer for run in runs if place.url.startswith(f"{(outer := _beside(run.store.url)).rstrip('/')}/")}
    if not with_users or not wider:
        return runs
    around = find_runs(Store(min(wider, key=len)))
    return [run for run in around if f"{run.store.url}/".startswith(f"{place.url.rstrip('/')}/")]


# ---- what must not go


def _refuse_place(store: Store) -> None:
    path = store.local_path()
    if path is not None and path.is_symlink():
        raise UserError(f"{store.url} is a link; give the folder that it leads to, {path.resolve()}")
    if path is None and "/" not in store.url.partition("://")[2]:
        raise UserError(f"{store.url} is a whole bucket, which is not deleted; remove it with the store's own tools")
    if store.get("run.json") is None and (below := find_runs(store)):
        raise UserError(
            f"{store.url} is no run, but holds {len(below)}, such as {below[0].name}; name those that are to go, or "
            "give --older-than, for example 30d"
        )
    _refuse_part(store)


def _beside(url: str) -> str:
    """Return where runs lie that may need this one: `runs` here if it is in there, else the folder that it lies in.

    Of a generator that sweeps share (PLACE/shared/generators/KEY), the place of the sweeps.
    """
    here = Store(Path("runs").resolve()).url
    if url.startswith(f"{here}/"):
        return here
    outer = url.rpartition("/")[0]
    place = outer.rsplit("/", 2)[0]
    if outer.rpartition("/")[2] in INNER and place.rpartition("/")[2]:  # a folder or bucket, not all of a disk
        return place
    return outer or "/"


def _refuse_part(store: Store) -> None:
    owner = owner_above(store)
    if owner is not None:
        raise UserError(f"{store.url} is part of the {read_run(owner)['kind']} in {owner.url}; give that one")


def _why_not(run: Run, users: Sequence[str]) -> str | None:
    """Return why a run must not go as a whole, None where it may; `users` are those that need it and stay."""
    if run.held:  # None is seen while it is waited for, when its turn comes
        return "it is running; stop it first"
    if run.strangers:
        return _crowded(run.strangers)
    if users:
        return f"{_needed(users)}; delete {'that one' if len(users) == 1 else 'those'} first, or all in one command"
    if run.doubts:
        one = len(run.doubts) == 1
        mend = f"mend {'that one' if one else 'those'} or remove {'it' if one else 'them'} by hand first"
        return f"{_some(run.doubts)} may need it and cannot be read; {mend}"
    return None


def _going(runs: Sequence[Run]) -> list[Run]:
    """Return those of these runs that may go as a whole; who is needed only by runs that go may go as well."""
    going = list(runs)
    while True:
        names = {run.name for run in going}
        left = [run for run in going if _why_not(run, _users_but(run, names)) is None]
        if len(left) == len(going):
            return going
        going = left


def _users_but(run: Run, gone: Container[str]) -> list[str]:
    """Return the users of a run but for those that go."""
    return [user for user in run.users if user not in gone]


def _may_go(run: Run) -> bool:
    """Return whether a run's age is enough: not where it is unfinished and can go on."""
    return run.state == "succeeded" or not run.checkpoints


def _why_thinned(run: Run, gone: Container[str]) -> str:
    if not _may_go(run):
        return f"it is unfinished ({run.state}) and can go on; to delete it all the same, name it without --older-than"
    return str(_why_not(run, _users_but(run, gone)))


def _crowded(others: Sequence[str]) -> str:
    return f"in its folder lie others ({_some(others)}), which would go with it; move or delete them first"


def _needed(users: Sequence[str]) -> str:
    return f"{_some(users)} {'needs' if len(users) == 1 else 'need'} it"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _thin(plan: Plan, runs: Sequence[Run], progress: Callable[[int, int], None]) -> None:
    """Add to a plan the checkpoints of these runs that nobody needs; where that cannot be told, a run's all stay."""
    for done, run in enumerate(runs):
        progress(done, len(runs))
        try:
            order = _thinned(run)
        except StoreAwayError:  # which is no word about this run
            raise
        except UserError as error:
            plan.kept.append((run, str(error)))
            continue
        if order.checkpoints:
            plan.orders.append(order)


def _thinned(run: Run) -> Order:
    """Return the removal of the checkpoints that nobody needs; the newest of each training is read and verified."""
    from hydramix_dist.checkpoint.spare import spare

    trainings = [training for training, folders in run.checkpoints.items() if len(folders) > 1]
    with ThreadPoolExecutor(store_settings().requests) as threads:
        found = threads.map(lambda training: spare(_training(run, training)), trainings)
        named = [(training, folder) for training, folders in zip(trainings, found, strict=True) for folder in folders]
    return Order(run, whole=False, checkpoints=tuple(named))


def _training(run: Run, training: str) -> Store:
    return run.store.child(training) if training else run.store


# ---- done


def _next(waiting: Mapping[str, Order], running: Collection[Order]) -> list[Order]:
    """Return the orders whose turn it is: nobody that is still to go needs what they delete."""
    going = {*waiting, *(order.run.store.url for order in running)}
    ready = [order for order in waiting.values() if going.isdisjoint(order.users)]
    # Runs that need each other have no order, so one of them makes the beginning.
    return ready if ready or running else list(waiting.values())[:1]


def _do(order: Order) -> None:
    """Carry out one order. Raises UserError where the run is held, or has changed since it was looked at."""
    store = order.run.store
    with exclusively(store):
        _refuse_changed(order.run)
        if order.whole:
            paths = store.list()
            _refuse_crowded(store, paths)
            mark_deleted(store)
            _remove_content(store, paths)
            _remove_folder(store)
        else:
            from hydramix_dist.checkpoint.commit import remove

            for training, folder in order.checkpoints:
                remove(_training(order.run, training), folder)
    if order.whole and store.local_path() is None:  # the lease is given up by then
        store.delete("lease")
        store.delete_all(["run.json"])


def _refuse_changed(run: Run) -> None:
    if parse_record(run.store)["kind"] == DELETED:
        return
    if int(read_status(run.store).get("attempt", 0)) != run.attempt:
        raise UserError(f"{run.store.url} has gone on meanwhile; it stays as it is")


def _refuse_crowded(store: Store, paths: Collection[str]) -> None:
    others = strangers_in(paths, owners(paths))[""]
    if others:
        raise UserError(f"{store.url} stays: {_crowded(others)}")


def _remove_content(store: Store, paths: Sequence[str]) -> None:
    """Remove all of a run that was listed but its mark, and what holds it for this process; on a disk all there is."""
    paths = [path for path in paths if path != "run.json" and not path.startswith(("lease/", ".lock"))]
    records = [path for path in paths if path.endswith("/run.json")]
    store.delete_all(records)  # first: from here on no inner training is one
    local = store.local_path()
    if local is None:
        store.delete_all(sorted(set(paths) - set(records)))
        return
    for child in sorted(local.iterdir()):
        if child.name not in ("run.json", ".lock"):
            store.delete(child.name)


def _remove_folder(store: Store) -> None:
    """Remove the mark, the lock while it is held, and the folder; on a disk alone."""
    local = store.local_path()
    if local is None:
        return
    for name in ("run.json", ".lock"):
        Path(local / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another run may begin there already
        local.rmdir()
