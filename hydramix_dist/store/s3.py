"""S3 through s3fs, with one way of trying again: each request for itself, and a request's body with it.

s3fs and botocore each try again by rules of their own, which multiplied would hide a store that is down for many
minutes; both are off here. What may pass (throttling, 5xx, resets, short bodies) is tried again with exponential
back-off and full jitter until `patience` is over; anything else is an answer at once.
"""

import asyncio
import contextlib
import gc
import logging
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import s3fs
from botocore.exceptions import FlexibleChecksumError
from fsspec.asyn import sync_wrapper

from hydramix_dist.config.store import StoreSettings
from hydramix_dist.store.s3_errors import LostUploadError, ShortBodyError, answer_to, cause, gave_up, may_pass, short
from hydramix_dist.store.traffic import traffic

T = TypeVar("T")
_log = logging.getLogger("hydramix")

CONNECT_SECONDS, READ_SECONDS = 5, 20  # of silence, each; a silent server counts as one that may come back
FIRST_ANSWER_SECONDS = 15.0  # patience with an endpoint that never answered: its address may be wrong
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_WRITER = "hydramix-writer"  # metadata by which a conditional put knows its own object


class PatientS3FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """s3fs whose requests are tried again for `patience` seconds; then they raise UserError."""

    retries = 1

    def __init__(self, *, patience: float, **options: Any) -> None:
        super().__init__(**options)
        self.patience = patience
        self._answered = False

    async def set_session(self, *how: Any, **named: Any) -> Any:
        """Return the client, made where there is none yet, in a third of the time: without collections meanwhile."""
        # botocore reads 100,000 small objects, at which Python looks again and again through all that torch holds.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return await super().set_session(*how, **named)
        finally:
            if collecting:
                gc.enable()

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Return (bucket, key, None); s3fs would cut "?versionId=..." off a key, and reach another object."""
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return bucket, key, None

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        conditional = method == "put_object" and "IfNoneMatch" in kwargs
        mark = {"Metadata": {_WRITER: uuid.uuid4().hex}} if conditional else {}

        async def once() -> Any:
            answer = await super(PatientS3FileSystem, self)._call_s3(method, *akwarglist, **kwargs, **mark)
            if method in ("put_object", "upload_part"):
                traffic.count(written_bytes=_size(kwargs.get("Body")))
            return answer

        where = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
        try:
            return await self._patiently(once, where)
        except FileNotFoundError as error:
            if method in ("upload_part", "complete_multipart_upload"):
                raise LostUploadError(where) from error
            raise
        except OSError as error:
            if not conditional or (answer_to(error) or ("", 0))[1] != 412:
                raise
            # This very call may have written it and only the answer been lost: aiohttp sends a PUT again, unseen.
            with contextlib.suppress(FileNotFoundError):
                there = await self._call_s3("head_object", Bucket=kwargs["Bucket"], Key=kwargs["Key"])
                if there["Metadata"].get(_WRITER) == mark["Metadata"][_WRITER]:
                    return {}
            raise FileExistsError(where) from error

    async def _cat_file(  # reads the whole body within one try; s3fs would ask for the size first
        self, path: str, version_id: str | None = None, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        bucket, key, _version = self.split_path(path)
        span = {} if start is None and end is None else {"Range": await self._process_limits(path, start, end)}

        async def once() -> bytes:
            answer = await super(PatientS3FileSystem, self)._call_s3("get_object", Bucket=bucket, Key=key, **span)
            try:
                data: bytes = await answer["Body"].read()
            finally:
                answer["Body"].close()
            if len(data) != answer["ContentLength"]:
                raise ShortBodyError(f"{len(data)} bytes came, {answer['ContentLength']} were announced")
            traffic.count(read_bytes=len(data))
            return data

        where = f"s3://{bucket}/{key}"
        try:
            return await self._patiently(once, where)
        except FlexibleChecksumError:  # against the store's own checksum: once more, it may have happened on the way
            return await self._patiently(once, where)
        except OSError as error:
            if (answer_to(error) or ("", 0))[1] == 416:  # from the object's end on there is nothing, as in a file
                return b""
            raise

    async def _exists(self, path: str) -> bool:
        # s3fs takes a bucket that does not answer for one that is not there, and a folder that SeaweedFS keeps of what
        # was removed for a full one.
        bucket, key, _version = self.split_path(path)
        if key:
            try:
                await self._call_s3("head_object", Bucket=bucket, Key=key)
            except FileNotFoundError:
                pass
            else:
                return True
        below = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
        return not key or bool(below.get("Contents"))

    exists = sync_wrapper(_exists)

    async def _entries(self, path: str) -> dict[str, tuple[int, float]]:
        """Return size in bytes and Unix time of the last change of all objects below a name, by BUCKET/KEY.

        Of an object itself, its own. Without the empty objects that stand for folders, as the console of AWS makes
        them. s3fs would also list the folder that SeaweedFS keeps of what was removed.
        """
        bucket, key, _version = self.split_path(path)
        found: dict[str, tuple[int, float]] = {}
        async for page in self._list_pages("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else ""):
            for one in page.get("Contents", []):
                found[f"{bucket}/{one['Key']}"] = (int(one["Size"]), one["LastModified"].timestamp())
        if not found and key:
            with contextlib.suppress(FileNotFoundError):
                itself = await self._call_s3("head_object", Bucket=bucket, Key=key)
                found = {path: (int(itself["ContentLength"]), itself["LastModified"].timestamp())}
        return {name: entry for name, entry in found.items() if not name.endswith("/")}

    entries = sync_wrapper(_entries)

    async def _sizes(self, path: str) -> dict[str, int]:
        """Return the sizes in bytes of all objects below a name, as `_entries` finds them."""
        return {name: size for name, (size, _changed) in (await self._entries(path)).items()}

    sizes = sync_wrapper(_sizes)

    async def _delete_below(self, path: str) -> None:
        """Remove an object and all below its name, a thousand with each request; what is not there is no error."""
        bucket, key, _version = self.split_path(path)
        names = [key] if key else []
        async for page in self._list_pages("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else ""):
            names += [one["Key"] for one in page.get("Contents", [])]
        await self._delete_all([f"{bucket}/{name}" for name in names])

    delete_below = sync_wrapper(_delete_below)

    async def _delete_all(self, paths: list[str]) -> None:
        """Remove objects of one bucket, a thousand with each request; what is not there is no error."""
        for first in range(0, len(paths), 1000):
            await self._bulk_delete(paths[first : first + 1000])

    delete_all = sync_wrapper(_delete_all)

    async def _bulk_delete(self, pathlist: list[str], **kwargs: Any) -> list[str]:
        bucket = pathlist[0].partition("/")[0]
        objects = [{"Key": path.partition("/")[2]} for path in pathlist]
        answer = await self._call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        for refused in answer.get("Errors", []):  # the answer as a whole is 200; s3fs does not look into it
            raise PermissionError(f"s3://{bucket}/{refused['Key']} was not removed ({refused.get('Code')})")
        return pathlist

    async def _put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        try:
            await super()._put_file(lpath, rpath, **options)
        except LostUploadError:  # the store has forgotten it: once more, from the start
            await super()._put_file(lpath, rpath, **options)

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        # Tried once: whoever aborts has waited long enough, and a lifecycle rule of the bucket removes such parts too.
        try:
            await super()._call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=mpu)
        except FileNotFoundError:
            pass  # its end was done, or somebody else removed it
        except Exception as error:
            _log.warning("parts of an unfinished upload to s3://%s/%s stay behind (%s)", bucket, key, short(error))

    async def _patiently(self, once: Callable[[], Awaitable[T]], where: str) -> T:
        began, tries = time.monotonic(), 0
        while True:
            tries += 1
            traffic.count(requests=1)
            try:
                result = await once()
            except Exception as error:
                self._answered = self._answered or answer_to(error) is not None
                if not may_pass(error):
                    raise
                patience = self.patience if self._answered else min(self.patience, FIRST_ANSWER_SECONDS)
                wait = random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**tries))
                spent = time.monotonic() - began
                if spent + wait > patience:
                    traffic.count(given_up=1)
                    raise gave_up(where, self._server(), tries, max(patience, spent), error) from error
                traffic.retry(cause(error))
                await asyncio.sleep(wait)
            else:
                self._answered = True
                return result

    def _server(self) -> str:
        return str(self._s3.meta.endpoint_url) if self._s3 is not None else "S3"


def _size(body: Any) -> int:
    return len(body) if isinstance(body, bytes | bytearray | memoryview) else int(getattr(body, "size", 0))


def s3_file_system(settings: StoreSettings) -> PatientS3FileSystem:
    """Return a new file system for this process. Nothing is asked of the server yet."""
    endpoint = None if settings.endpoint is None else settings.endpoint.rstrip("/")
    authorities = None if settings.ca_bundle is None else str(Path(settings.ca_bundle).expanduser())
    client = {"region_name": settings.region, "verify": authorities}
    style = {} if settings.addressing == "auto" else {"s3": {"addressing_style": settings.addressing}}
    return PatientS3FileSystem(
        patience=settings.patience,
        endpoint_url=endpoint,
        client_kwargs={key: value for key, value in client.items() if value is not None},
        config_kwargs={
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": settings.requests,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            **style,
        },
        max_concurrency=settings.requests,
        use_listings_cache=False,  # stale listings would hide what another process has just written
        skip_instance_cache=True,
        **({"profile": settings.profile} if settings.profile else {}),
    )
