"""What a store lets these credentials do: each kind of request is tried on objects of the probe's own."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

_BODY = bytes(range(256)) * 4
_KNOWN = ("manifest.json", "run.json")  # what lies at the top of a data set and of a run
_REFUSED = ("AccessDenied", "AllAccessDisabled", "Forbidden", "403")  # the last: an answer without a body

State = Literal["ok", "not permitted", "not supported", "broken", "not tried"]


@dataclass(frozen=True)
class Request:
    """A kind of request: what it is for where it works, what follows where it does not, and the right it needs."""

    name: str
    allows: str
    else_: str
    right: str


LIST = Request("list", "data sets and runs are found", "neither data sets nor runs are found here", "s3:ListBucket")
GET = Request("get", "data sets and runs are read", "neither data sets nor runs can be read here", "s3:GetObject")
RANGED_GET = Request("ranged get", "subsets are read by parts", "subsets of data sets cannot be read", "s3:GetObject")
PUT = Request("put", "runs and imports are written", "runs and imports cannot be written here", "s3:PutObject")
CONDITIONAL_PUT = Request(
    "conditional put", "of two writers of one run one wins", "two writers of one run could both win", "s3:PutObject"
)
DELETE = Request(
    "delete", "old checkpoints are removed", "a training ends where it is to remove a checkpoint", "s3:DeleteObject"
)


@dataclass(frozen=True)
class Finding:
    """How one kind of request fared; `detail` says what follows from it."""

    request: Request
    state: State
    detail: str


def probe(store: Store) -> list[Finding]:
    """Return a finding a kind of request, only the first where there is no such store; nothing is left behind.

    Where removing is refused, its finding names what was left.
    """
    folder = f".doctor-{uuid.uuid4().hex}"
    written, claim = f"{folder}/object", f"{folder}/claim"
    listed = _tried(LIST, lambda: _nothing_in(store.list(folder)))
    if listed.state == "broken":  # no server, no bucket, no credentials: the others would say it again
        return [listed]
    put = _tried(PUT, lambda: store.put(written, _BODY))
    if put.state == "not permitted":
        return [listed, put, *_reads_of_what_is_there(store)]
    found = [listed, put]
    try:
        if put.state == "ok":
            read = _reads(store, written, _BODY)
            found += [*read, _tried(CONDITIONAL_PUT, lambda: _one_wins(store, claim))]
    finally:
        found.append(_removed(store, folder, (written, claim)))
    return found


def _reads(store: Store, path: str, body: bytes) -> list[Finding]:
    """Return how reading an object fared of which the content is known."""
    start, length = len(body) // 3, len(body) // 4
    return [
        _tried(GET, lambda: _same(store.read(path), body)),
        _tried(RANGED_GET, lambda: _same(store.read(path, start, length), body[start : start + length])),
    ]


def _reads_of_what_is_there(store: Store) -> list[Finding]:
    """Return how reading fares where nothing can be written: tried on a data set or a run."""
    for path in _KNOWN:
        try:
            body = store.read(path)
        except FileNotFoundError:
            continue
        except Exception as error:
            return [_failed(GET, error)]
        return _reads(store, path, body)
    untried = "not tried: nothing can be written, and neither a data set nor a run lies here"
    return [Finding(GET, "not tried", untried)]


def _removed(store: Store, folder: str, paths: Sequence[str]) -> Finding:
    """Return how removing the probe's objects fared, and what is left of them."""
    finding = _tried(DELETE, lambda: store.delete(folder))
    left = [path for path in paths if _seems_there(store, path)]
    if not left:
        return finding
    said = f"left behind: {', '.join(store.path(path) for path in left)}"
    if finding.state == "ok":
        return Finding(DELETE, "broken", f"{DELETE.else_}: the store removes nothing; {said}")
    return Finding(DELETE, finding.state, f"{finding.detail}; {said}")


def _seems_there(store: Store, path: str) -> bool:
    try:
        return store.exists(path)
    except Exception:  # what may not be looked at may be there
        return True


def _tried(request: Request, act: Callable[[], object]) -> Finding:
    # Any exception is a finding here: a request that dies must not keep the others from being tried.
    try:
        act()
    except Exception as error:
        return _failed(request, error)
    return Finding(request, "ok", request.allows)


def _failed(request: Request, error: Exception) -> Finding:
    code = _code(error)
    if code in _REFUSED:
        return Finding(request, "not permitted", f"{request.else_}: {request.right} is refused")
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError):
        return Finding(request, "not permitted", f"{request.else_}: {text}")
    state: State = "not supported" if isinstance(error, _IgnoredError) or code == "NotImplemented" else "broken"
    return Finding(request, state, f"{request.else_}: {text}")


def _code(error: BaseException | None) -> str | None:
    """Return the code of the S3 answer that an error comes from, None where it comes from none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__
    return None


# ---- what an answer must be


class _IgnoredError(Exception):
    """The store did something else than what the condition of a put asks for."""


def _nothing_in(listed: list[str]) -> None:
    if listed:
        raise UserError(f"{listed[0]} is listed although it is not there")


def _same(read: bytes, expected: bytes) -> None:
    if read != expected:
        raise UserError(f"other bytes came back ({len(read)}, {len(expected)} were asked for)")


def _one_wins(store: Store, path: str) -> None:
    first, second = store.put_if_absent(path, b"first"), store.put_if_absent(path, b"second")
    if second or store.read(path) != b"first":
        raise _IgnoredError("the store ignores If-None-Match")
    if not first:
        raise UserError("the store takes an object for present that is not")
