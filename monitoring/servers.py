"""A real Prometheus and Alertmanager on this machine, for `make monitor` and for tests.

They are Debian packages (`apt-get install prometheus prometheus-alertmanager`), or the programs of
https://prometheus.io/download on the PATH. Both listen on 127.0.0.1 alone and keep everything below one folder; several
run side by side on ports of their own.
"""

import abc
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

HOST = "127.0.0.1"
START = 60.0  # seconds until a server must be ready; under 1 on an idle machine
HERE = Path(__file__).resolve().parent

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}  # in milliseconds
_DURATION = r"(?:\d+(?:ms|[smhdw]))+"
# After a key of YAML, within the brackets of a range or a subquery, after `offset`.
_PLACES = (
    rf"(?<=: ){_DURATION}(?=[ \t]*(?:#.*)?$)",
    rf"(?<=\[){_DURATION}(?=[\]:])",
    rf"(?<=:){_DURATION}(?=\])",
    rf"(?<=\boffset ){_DURATION}\b",
)


class _Server(abc.ABC):
    """A program that serves HTTP on one port of this machine, run by `start` or as a context."""

    def __init__(self, names: tuple[str, ...], package: str, folder: Path, port: int | None) -> None:
        self._program = find_program(names, package)
        self._folder = folder.resolve()
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the address of its pages, "http://127.0.0.1:PORT"."""
        return f"http://{HOST}:{self._port}"

    @property
    def address(self) -> str:
        """Return "127.0.0.1:PORT", as targets are written."""
        return f"{HOST}:{self._port}"

    @property
    def running(self) -> bool:
        """Return whether it was started and has not ended since."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the program and return once it is ready.

        Raises RuntimeError with the end of its log where it ends or is not ready within START seconds.
        """
        log = self._folder / "log.txt"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [self._program, *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C is the user's word to the program that runs this, which ends it
            )
        try:
            self._wait_until_ready(log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the program in good order and return when it is gone; data stay."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abc.abstractmethod
    def _options(self) -> list[str]:
        """Return the program's command line options."""

    def _wait_until_ready(self, log: Path) -> None:
        end = time.monotonic() + START
        while not self._is_ready():
            assert self._process is not None
            ended = self._process.poll() is not None
            if ended or time.monotonic() > end:
                what = "ended at its start" if ended else f"is not ready after {START:.0f} s"
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{Path(self._program).name} {what}; the end of {log}:\n{tail}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            self._get("/-/ready")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> bytes:
        # No proxy of the environment stands between this machine and itself.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(self.url + path, timeout=10) as answer:
            content: bytes = answer.read()
            return content


class Prometheus(_Server):
    """A Prometheus server whose configuration is `files`: `prometheus.yml`, and what that names beside itself."""

    def __init__(self, folder: Path, files: Mapping[str, str], *, port: int | None = None, cors: bool = False) -> None:
        """Write the files below `folder`; nothing runs yet. Raises RuntimeError where it is not installed.

        With `cors` any page that a browser of this machine shows may read what is stored, wherever the page is from:
        for the time of taking pictures of boards alone.
        """
        super().__init__(("prometheus",), "prometheus", folder, port)
        self._cors = cors
        for name, text in files.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def _options(self) -> list[str]:
        return [
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self.address}",
            f"--web.external-url={self.url}",  # where links of alerts lead; by default this machine's public name
            f"--web.cors.origin={'.*' if self._cors else 'none'}",  # the default is .*; no page's origin is "none"
            "--log.level=warn",
        ]

    def page(self, name: str) -> str:
        """Return the address of one of its pages, "graph", "alerts" or "targets".

        Debian's package has them at another place: it leaves out what is made of JavaScript packages.
        """
        try:
            self._get(f"/{name}")
        except urllib.error.HTTPError as error:
            with error:
                return f"{self.url}/classic/{name}"
        return f"{self.url}/{name}"

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return (labels, value) of each series that an expression gives now, a scalar as one without labels.

        Raises ValueError with Prometheus' own words where it refuses the expression.
        """
        data = self._ask("query?" + urllib.parse.urlencode({"query": expression}))
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def history(
        self, expression: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], list[float]]]:
        """Return (labels, values) of each series that an expression gives from `start` to `end`, Unix times.

        Raises ValueError with Prometheus' own words where it refuses the expression.
        """
        when = {"start": start, "end": end, "step": step}
        data = self._ask("query_range?" + urllib.parse.urlencode({"query": expression} | when))
        return [(series["metric"], [float(value) for _, value in series["values"]]) for series in data["result"]]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing: `labels`, `annotations`, `state`, `activeAt`, `value`."""
        found: list[dict[str, Any]] = self._ask("alerts")["alerts"]
        return found

    def _ask(self, path: str) -> Any:
        try:
            return json.loads(self._get(f"/api/v1/{path}"))["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.loads(error.read())["error"]) from None


class Alertmanager(_Server):
    """An Alertmanager with a configuration of its own, alone: it looks for no others of its kind."""

    def __init__(self, folder: Path, config: str, *, port: int | None = None) -> None:
        """Write the configuration below `folder`; nothing runs yet. Raises RuntimeError where it is not installed."""
        names = ("prometheus-alertmanager", "alertmanager")  # Debian's name, its makers' name
        super().__init__(names, "prometheus-alertmanager", folder, port)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "alertmanager.yml").write_text(config, encoding="utf-8")

    def _options(self) -> list[str]:
        return [
            f"--config.file={self._folder / 'alertmanager.yml'}",
            f"--storage.path={self._folder / 'data'}",
            f"--web.listen-address={self.address}",
            f"--web.external-url={self.url}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ]

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that it holds: `labels`, `annotations`, `status` (with its state), `startsAt`."""
        found: list[dict[str, Any]] = json.loads(self._get("/api/v2/alerts"))
        return found


def prometheus_files(
    *,
    targets: str | Path | None = None,
    ray: str | Path | None = None,
    alertmanager: str | None = None,
    factor: float = 1.0,
) -> dict[str, str]:
    """Return the committed configuration of Prometheus and its rules, by name, as `Prometheus` takes them.

    `targets` is the folder in which exporters write their addresses, `ray` the file in which Ray does, `alertmanager`
    is HOST:PORT; None leaves what the file says. All durations are divided by `factor`.
    """
    folder = HERE / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))
    found = {job["job_name"]: job["file_sd_configs"][0] for job in config["scrape_configs"]}
    if targets is not None:
        found["hydramix"]["files"] = [f"{targets}/*.json"]
    if ray is not None:
        found["ray"]["files"] = [str(ray)]
    if alertmanager is not None:
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    files = {"prometheus.yml": yaml.safe_dump(config, sort_keys=False)}
    files |= {f"rules/{path.name}": path.read_text(encoding="utf-8") for path in sorted(folder.glob("rules/*.yml"))}
    return {name: scaled(text, factor) for name, text in files.items()}


def alertmanager_config(webhook: str) -> str:
    """Return the committed configuration of Alertmanager with messages to this URL, for all its receivers."""
    config = yaml.safe_load((HERE / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": webhook}]
    return yaml.safe_dump(config, sort_keys=False)


def scaled(text: str, factor: float) -> str:
    """Return a configuration or rules with every duration divided by `factor`, to the millisecond and never below one.

    Those after a key (`for: 5m`, `scrape_interval: 15s`), of ranges (`[5m]`, `[1h:30s]`) and after `offset` are found;
    numbers that happen to be seconds are not.
    """
    if factor == 1:
        return text

    def shorter(match: re.Match[str]) -> str:
        parts = re.findall(r"(\d+)(ms|[smhdw])", match[0])
        length = sum(int(number) * _UNITS[unit] for number, unit in parts)
        return f"{max(1, round(length / factor))}ms" if length else match[0]

    return re.sub("|".join(_PLACES), shorter, text, flags=re.MULTILINE)


def find_program(names: tuple[str, ...], package: str) -> str:
    """Return the path of the first of these programs that is there.

    Raises RuntimeError with the way to get it where there is none.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    raise RuntimeError(f"{names[-1]} is not installed: apt-get install {package}, or https://prometheus.io/download")


def free_port(wanted: int | None = None) -> int:
    """Return a port of the loopback address that nobody listens on, `wanted` if that is one."""
    for port in [wanted, 0] if wanted else [0]:
        with socket.socket() as probe:
            # As servers do: a port whose last connections are just closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError(f"no port of {HOST} is free")
