"""A proxy between a client and a real S3 server: it passes everything on, counts it, and does harm on order.

Request heads pass unchanged, the signed Host among them, so the client signs for the proxy's address and the server
accepts it. A client connection has one connection to the server, kept as long as both keep theirs.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

PIECE = 2**16  # bytes passed on at once


@dataclass
class Faults:
    """The harm that is done to requests from now on; each field may be set at any time.

    Shares are of all requests and are drawn from the seed, the request and how often it has come, not from the order
    in which concurrent requests arrive: the same requests meet the same faults in every run.
    """

    gather: int = 0  # requests wait until so many have been there at one time, at most 10 s
    latency: float = 0.0  # seconds before a request is looked at
    unavailable: float = 0.0  # share answered 503 SlowDown; the server does not see them
    reset: float = 0.0  # share whose answer breaks off by a TCP reset half way through its body, or before its head
    cut: float = 0.0  # share whose answer's body ends half way, in an orderly close; answers without a body pass
    flip: Callable[[str], bool] = lambda path: False  # by path: one bit of the body's middle byte is another
    refuse: Callable[[str, str], bool] = lambda method, path: False  # by method and path: answered 403 AccessDenied
    seed: int = 0


@dataclass(frozen=True)
class Seen:
    """What has passed since the beginning or the last `clear`: requests begun, body bytes up and body bytes down."""

    requests: int = 0
    uploaded: int = 0
    downloaded: int = 0


@dataclass
class Request:
    """A request that came: paths are unquoted ("/bucket/key"), status is 0 and `sent` short where no whole answer went.

    `fault` names what was done to it: "" (nothing), "unavailable", "refuse", "reset", "cut", "flip", or "lost", where
    the server did not answer or the client did not wait.
    """

    method: str
    path: str
    query: dict[str, str]
    range: str | None
    status: int = 0
    uploaded: int = 0  # body bytes that the client sent
    sent: int = 0  # body bytes that the client was sent
    fault: str = ""


class FaultProxy:
    """A proxy in front of one server address, running in a thread of its own while the context lasts."""

    def __init__(self, upstream_endpoint: str) -> None:
        """Name the server by its http address; nothing listens yet."""
        parts = urlsplit(upstream_endpoint)
        assert parts.scheme == "http" and parts.hostname and parts.port, upstream_endpoint
        self._upstream = parts.hostname, parts.port
        self.faults = Faults()
        self.endpoint = ""
        self._actions: list[tuple[Callable[[Seen], bool], Callable[[], object], Future[None]]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault proxy", daemon=True)
        self._ready = threading.Event()
        self._now = 0  # requests begun and not yet ended; `most_at_once` is the most of them at one time
        self.clear()

    def clear(self) -> None:
        """Forget all requests seen so far; faults and actions that wait remain."""
        self._requests: list[Request] = []
        self._seen = Seen()
        self.most_at_once = self._now
        self._times: Counter[tuple[object, ...]] = Counter()

    @property
    def requests(self) -> tuple[Request, ...]:
        """Return all requests in the order in which they came."""
        return tuple(self._requests)

    def when(self, condition: Callable[[Seen], bool], action: Callable[[], object]) -> "Future[None]":
        """Do something once, as soon as a condition on what has passed holds: kill the server half way, for example.

        The request that made it true waits for the action, which runs in a thread. Return the action's future.
        """
        done: Future[None] = Future()
        self._actions.append((condition, action, done))
        return done

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        assert self._ready.wait(10), "the proxy does not come up"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the proxy does not end"

    # ---- in the proxy's thread

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=2 * PIECE)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self._transports:  # what was closed with bytes left to send would outlive the loop, half open
            transport.abort()
        await asyncio.sleep(0)  # they are taken down in the loop's next turn

    def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.add(writer.transport)
        task = asyncio.ensure_future(_Connection(self, reader, writer).run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a new connection to the server. Raises OSError where it is down."""
        reader, writer = await asyncio.open_connection(*self._upstream, limit=2 * PIECE)
        self._transports.add(writer.transport)
        return reader, writer

    async def begin(self, request: Request) -> str:
        """Count a request in; return the fault that it is to meet."""
        self._requests.append(request)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await self.saw(requests=1)
        faults = self.faults
        patience = self._loop.time() + 10
        while self.most_at_once < faults.gather and self._loop.time() < patience:
            await asyncio.sleep(0.005)
        await asyncio.sleep(faults.latency)
        if faults.refuse(request.method, request.path):
            return "refuse"
        # The id of a multipart upload is the server's and another in each run.
        query = tuple(sorted((name, value) for name, value in request.query.items() if name != "uploadId"))
        what = (request.method, request.path, query, request.range)
        self._times[what] += 1
        draw = random.Random(repr((faults.seed, what, self._times[what])))
        for name, share in (("unavailable", faults.unavailable), ("reset", faults.reset), ("cut", faults.cut)):
            if draw.random() < share:
                return name
        return "flip" if request.method == "GET" and faults.flip(request.path) else ""

    def end(self) -> None:
        """Count a request out."""
        self._now -= 1

    async def saw(self, requests: int = 0, uploaded: int = 0, downloaded: int = 0) -> None:
        """Count what passes; do the actions whose time has come, and wait for them."""
        old = self._seen
        self._seen = Seen(old.requests + requests, old.uploaded + uploaded, old.downloaded + downloaded)
        for entry in [entry for entry in self._actions if entry[0](self._seen)]:
            self._actions.remove(entry)
            _, action, done = entry
            try:
                await self._loop.run_in_executor(None, action)
            except Exception as error:  # the test learns of it from the future
                done.set_exception(error)
            else:
                done.set_result(None)


class _Connection:
    """One client's connection, with its own to the server."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._under_way = False  # a request, counted in and not yet out

    async def run(self) -> None:
        """Serve request after request until one side is gone."""
        try:
            while await self._one():
                pass
        except (OSError, asyncio.IncompleteReadError):
            self._reset()  # the other side sees what it would see without a proxy: a connection that broke
        finally:
            self._writer.close()
            if self._server:
                self._server[1].close()

    async def _one(self) -> bool:
        """Serve a request; return whether another one may come on this connection."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return False
        first, headers = _parse(head)
        method, target, _ = first.split(" ", 2)
        path, _, query = target.partition("?")
        pairs = dict(parse_qsl(query, keep_blank_values=True))
        request = Request(method, unquote(path), pairs, headers.get("range"), fault="lost")
        self._under_way = True
        try:
            fault = await self._proxy.begin(request)
            if headers.get("expect", "").lower() == "100-continue":
                # The server is not asked: its own "continue" would have to be told from its answer.
                head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
                self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = self._upload(request, headers)
            if fault in ("unavailable", "refuse"):
                async for _ in body:
                    pass
                await self._refuse(request, fault)
            elif not await self._answer(request, fault, head, body):
                return False
        except (OSError, asyncio.IncompleteReadError):
            self._settle(request, "lost")
            raise
        return headers.get("connection", "").lower() != "close"

    async def _upload(self, request: Request, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """Yield a request's body as it goes over the wire, in pieces."""
        async for piece in _body(self._reader, headers, decode=False):
            request.uploaded += len(piece)
            yield piece
            await self._proxy.saw(uploaded=len(piece))

    async def _refuse(self, request: Request, fault: str) -> None:
        status, code = (503, "SlowDown") if fault == "unavailable" else (403, "AccessDenied")
        xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>by order</Message></Error>'
        lines = [f"HTTP/1.1 {status} {code}", "Content-Type: application/xml", f"Content-Length: {len(xml)}"]
        body = "" if request.method == "HEAD" else xml
        request.status, request.sent = status, len(body)
        self._settle(request, fault)
        self._writer.write("\r\n".join([*lines, "", body]).encode())
        await self._writer.drain()

    async def _answer(self, request: Request, fault: str, head: bytes, body: AsyncIterator[bytes]) -> bool:
        """Pass a request on and its answer back, with a fault; return whether the connection goes on."""
        if self._server is None or self._server[0].at_eof() or self._server[0].exception():
            if self._server:
                self._server[1].close()
            self._server = await self._proxy.connect()
        reader, writer = self._server
        writer.write(head)
        async for piece in body:
            # A server that has answered early takes no more, but the client wants to be rid of all before it listens.
            if not writer.transport.is_closing():
                with contextlib.suppress(ConnectionError):
                    writer.write(piece)
                    await writer.drain()
        first, headers = _parse(answer := await reader.readuntil(b"\r\n\r\n"))
        request.status = int(first.split()[1])
        has_body = request.method != "HEAD" and request.status not in (204, 304)
        if has_body and "transfer-encoding" in headers:  # a list's: small, and simpler with its length said
            content = b"".join([piece async for piece in _body(reader, headers, decode=True)])
            answer = _with_length(answer, len(content))
            pieces, length = _pieces_of(content), len(content)
        else:
            length = int(headers.get("content-length", 0)) if has_body else 0
            pieces = _body(reader, {"content-length": str(length)}, decode=True)
        goes_on = headers.get("connection", "").lower() != "close"
        return await self._send(request, fault, answer, pieces, length) and goes_on

    async def _send(self, request: Request, fault: str, head: bytes, body: AsyncIterator[bytes], length: int) -> bool:
        """Send an answer of which a fault may let only a half through; return whether it went whole."""
        breaks = fault == "reset" or (fault == "cut" and length > 0)
        flipped = length // 2 if fault == "flip" and length and request.status in (200, 206) else -1
        left, told = (length // 2 if breaks else length), (fault if breaks or flipped >= 0 else "")
        if not left:
            self._settle(request, told)
        if length or not breaks:
            self._writer.write(head)
        async for whole in body:
            piece, at = whole[:left], flipped - request.sent
            if 0 <= at < len(piece):
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            request.sent += len(piece)
            left -= len(piece)
            await self._proxy.saw(downloaded=len(piece))
            if not left:
                self._settle(request, told)
            self._writer.write(piece)
            await self._writer.drain()
            if not left:
                break
        await self._writer.drain()
        if fault == "reset":
            self._reset()
        return not breaks

    def _settle(self, request: Request, fault: str) -> None:
        """Make a request's record final: before its last byte goes, for the client may look at it then."""
        request.fault = fault
        if self._under_way:
            self._under_way = False
            self._proxy.end()

    def _reset(self) -> None:
        """End the client's connection by a TCP reset."""
        connection = self._writer.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            # Lingering for no time at all makes the kernel send a reset in place of an orderly end.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    """Return a head's first line and its headers, by lower-case names."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _with_length(head: bytes, length: int) -> bytes:
    """Return an answer's head with its body's length in place of its encoding in chunks."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"transfer-encoding:")]
    return b"\r\n".join([lines[0], b"Content-Length: %d" % length, *lines[1:]])


async def _pieces_of(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


async def _body(reader: asyncio.StreamReader, headers: dict[str, str], decode: bool) -> AsyncIterator[bytes]:
    """Yield a message's body in pieces; one in chunks with its frames around it, or decoded.

    Raises asyncio.IncompleteReadError where the sender leaves before the end.
    """
    if headers.get("transfer-encoding", "").lower() != "chunked":
        left = int(headers.get("content-length", 0))
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece
        return
    size = -1
    while size:
        frame = await reader.readuntil(b"\r\n")
        size = int(frame.split(b";")[0], 16)
        content = await reader.readexactly(size) if size else b""
        end = await reader.readuntil(b"\r\n")
        while size == 0 and end != b"\r\n" and not end.endswith(b"\r\n\r\n"):  # trailers
            end += await reader.readuntil(b"\r\n")
        yield content if decode else frame + content + end
