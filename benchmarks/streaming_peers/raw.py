"""The limit: GETs of the very objects that our reader reads, side by side, with sha256 and nothing else."""

import hashlib
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import s3fs
from passes import Settings, serve


def read(settings: Settings) -> Iterator[list[bytes] | None]:
    """Yield None once the client is connected, and one empty batch at the end.

    Raises ValueError where an object is not what it should be.
    """
    expected: dict[str, str] = settings["sha256"]
    file_system = s3fs.S3FileSystem(skip_instance_cache=True)
    file_system.info(next(iter(expected)))
    yield None
    if settings["by"] == "s3fs.cat":  # of a list: one call, which gives back all objects at once
        contents = file_system.cat(list(expected), batch_size=settings["side_by_side"])
        found = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    else:
        urls: dict[str, str] = settings["urls"]
        by_urllib = settings["by"] == "urllib"

        def digest(name: str) -> str:
            return hashlib.sha256(_get(urls[name]) if by_urllib else file_system.cat(name)).hexdigest()

        with ThreadPoolExecutor(settings["side_by_side"]) as threads:
            found = dict(zip(expected, threads.map(digest, expected), strict=True))
    if found != expected:
        raise ValueError("an object is not what was stored")
    yield []


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return answer.read()  # type: ignore[no-any-return]


if __name__ == "__main__":
    serve(read)
