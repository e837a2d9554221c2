"""S3 through s3fs, with one way of trying again: each request for itself, and a request's body with it.

s3fs and botocore each try again by rules of their own, which multiplied would hide a store that is down for many
minutes; both are off here. What may pass (throttling, 5xx, resets, short bodies) is tried again with exponential
back-off and full jitter until `patience` is over; anything else is an answer at once.
"""

import asyncio
import contextlib
import logging
import os
import random
import re
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper

from hydramix_dist.config.store import StoreSettings, store_settings
from hydramix_dist.errors import DamagedError, StoreAwayError, UserError
from hydramix_dist.store.traffic import traffic

T = TypeVar("T")
_log = logging.getLogger("hydramix")

CONNECT_SECONDS, READ_SECONDS = 5, 20  # of silence, each; a silent server counts as one that may come back
FIRST_ANSWER_SECONDS = 15.0  # patience with an endpoint that never answered: its address may be wrong
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_PASSING = (
    aiohttp.ClientError,
    asyncio.IncompleteReadError,
    asyncio.TimeoutError,
    ConnectionError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseParserError,
    ResponseStreamingError,
)
# Throttling by other names, and uploads that arrived otherwise than they were sent.
_PASSING_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout"} | {
    "ConditionalRequestConflict",
    "OperationAborted",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_WRITER = "hydramix-writer"  # metadata by which a conditional put knows its own object


class LostUploadError(OSError):
    """The store does not know an upload any more that is under way, or that was ended before: it is sent anew."""


class PatientS3FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """s3fs whose requests are tried again for `patience` seconds; then they raise UserError."""

    retries = 1

    def __init__(self, *, patience: float, **options: Any) -> None:
        super().__init__(**options)
        self.patience = patience
        self._answered = False

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Return (bucket, key, None); s3fs would cut "?versionId=..." off a key, and reach another object."""
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return bucket, key, None

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        conditional = method == "put_object" and "IfNoneMatch" in kwargs
        mark = {"Metadata": {_WRITER: uuid.uuid4().hex}} if conditional else {}

        async def once() -> Any:
            return await super(PatientS3FileSystem, self)._call_s3(method, *akwarglist, **kwargs, **mark)

        where = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key', kwargs.get('Prefix', ''))}"
        try:
            return await self._patiently(once, where)
        except FileNotFoundError as error:
            if method in ("upload_part", "complete_multipart_upload"):
                raise LostUploadError(where) from error
            raise
        except OSError as error:
            if not conditional or (_answer_to(error) or ("", 0))[1] != 412:
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
                raise ConnectionError(f"{len(data)} bytes came, {answer['ContentLength']} were announced")
            traffic.count(read_bytes=len(data))
            return data

        where = f"s3://{bucket}/{key}"
        try:
            return await self._patiently(once, where)
        except FlexibleChecksumError:  # against the store's own checksum: once more, it may have happened on the way
            return await self._patiently(once, where)
        except OSError as error:
            if (_answer_to(error) or ("", 0))[1] == 416:  # from the object's end on there is nothing, as in a file
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

    async def _bulk_delete(self, pathlist: list[str], **kwargs: Any) -> list[str]:
        bucket = pathlist[0].partition("/")[0]
        objects = [{"Key": path.partition("/")[2]} for path in pathlist]
        answer = await self._call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        for refused in answer.get("Errors", []):  # the answer as a whole is 200; s3fs does not look into it
            raise PermissionError(f"s3://{bucket}/{refused['Key']} was not removed ({refused.get('Code')})")
        return pathlist

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        # Tried once: whoever aborts has waited long enough, and a lifecycle rule of the bucket removes such parts too.
        try:
            await super()._call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=mpu)
        except FileNotFoundError:
            pass  # its end was done, or somebody else removed it
        except Exception as error:
            _log.warning("parts of an unfinished upload to s3://%s/%s stay behind (%s)", bucket, key, _short(error))

    def delete_all(self, names: list[str]) -> None:
        """Remove objects of one bucket by name, a thousand with each request."""
        for first in range(0, len(names), 1000):
            self._delete_some(names[first : first + 1000])

    _delete_some = sync_wrapper(_bulk_delete)

    async def _patiently(self, once: Callable[[], Awaitable[T]], where: str) -> T:
        began, tries = time.monotonic(), 0
        while True:
            tries += 1
            traffic.count(requests=1)
            try:
                result = await once()
            except Exception as error:
                self._answered = self._answered or _answer_to(error) is not None
                if not may_pass(error):
                    raise
                patience = self.patience if self._answered else min(self.patience, FIRST_ANSWER_SECONDS)
                wait = random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**tries))
                if time.monotonic() - began + wait > patience:
                    raise _gave_up(where, self._server(), tries, patience, error) from error
                traffic.count(retries=1)
                await asyncio.sleep(wait)
            else:
                self._answered = True
                return result

    def _server(self) -> str:
        return str(self._s3.meta.endpoint_url) if self._s3 is not None else "S3"


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


def may_pass(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    answer = _answer_to(error)
    if answer is not None:
        code, status = answer
        return code in _PASSING_CODES or status == 429 or (status >= 500 and status != 501)
    final = isinstance(error, SSLError) or _is_tls(error) or _reading_authorities(error) is not None
    return isinstance(error, _PASSING) and not final


def explain(error: BaseException, where: str, action: str) -> UserError | None:
    """Return what to tell of an S3 error that is final, None where it is another kind of error.

    `action` is "read" or "write". Credentials are never part of the text.
    """
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return UserError(
            f"{where}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give "
            "the machine a role"
        )
    if isinstance(error, ProfileNotFound):
        return UserError(f"{where}: {error}; name one that is in ~/.aws/config")
    if isinstance(error, SSLError) or _is_tls(error):
        return UserError(
            f"{where}: the server's certificate was not accepted ({_short(error)}); give the PEM file of its authority "
            "as AWS_CA_BUNDLE or as ca_bundle in HYDRAMIX_STORE"
        )
    unread = _reading_authorities(error)
    if unread is not None:
        return UserError(
            f"{where}: the certificate authorities in {store_settings().ca_bundle or os.environ.get('AWS_CA_BUNDLE')} "
            f"cannot be read ({_short(unread)}); give a PEM file as AWS_CA_BUNDLE or as ca_bundle in "
            "HYDRAMIX_STORE"
        )
    if isinstance(error, LostUploadError):
        return UserError(
            f"cannot write {where}: twice the store has forgotten the upload while it was under way; a lifecycle rule "
            "of the bucket that ends uploads must leave them some hours"
        )
    if isinstance(error, FlexibleChecksumError):
        return DamagedError(
            f"cannot read {where}: twice it arrived otherwise than the store recorded it ({_short(error)}); it is "
            "damaged there or on the way"
        )
    answer = _answer_to(error)
    if answer is None:
        return UserError(f"{where}: {_short(error)}") if isinstance(error, BotoCoreError | ValueError) else None
    code, status = answer
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return UserError(
            f"cannot {action} {where}: the credentials are not valid ({code}); check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or the profile"
        )
    if code == "RequestTimeTooSkewed":
        return UserError(f"cannot {action} {where}: this machine's clock is wrong ({code}); set it")
    if status == 403:
        rights = "s3:GetObject and s3:ListBucket" if action == "read" else "s3:PutObject and s3:DeleteObject"
        doubt = ", if they are valid at all," if code == "403" else ""  # the answer to HEAD has no body to tell
        return UserError(
            f"cannot {action} {where}: permission denied (403); these credentials{doubt} need {rights} there, see: "
            "hydramix doctor --store URL"
        )
    if code == "NoSuchBucket":
        return UserError(f"cannot {action} {where}: the bucket does not exist; make it first, or mend the name")
    if status in (301, 307) or code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return UserError(f"cannot {action} {where}: the bucket is in another region ({code}); set AWS_REGION to it")
    if status in (404, 412):
        return None
    return UserError(f"cannot {action} {where}: the store refuses it ({code}: {_short(error)})")


def _answer_to(error: BaseException) -> tuple[str, int] | None:
    """Return (code, HTTP status) of what the server said, None where it said nothing."""
    said = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(said, ClientError):
        return None
    code = str(said.response.get("Error", {}).get("Code", ""))
    status = said.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code, int(status or (code if code.isdigit() else 0))


def _is_tls(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientSSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _reading_authorities(error: BaseException) -> BaseException | None:
    """Return why the PEM file cannot be read, which aiobotocore finds out, and wraps, at the first request."""
    inner = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
    return inner if isinstance(inner, FileNotFoundError | PermissionError | IsADirectoryError | ssl.SSLError) else None


def _gave_up(where: str, server: str, tries: int, patience: float, error: BaseException) -> StoreAwayError:
    answer = _answer_to(error)
    last = f"{answer[1]} {answer[0]}" if answer else _short(error)
    return StoreAwayError(
        f"{where}: {server} gave no good answer in {patience:g} s ({tries} tries, the last: {last}); what was saved "
        "stays, and the same command goes on when the store is back"
    )


def _short(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
