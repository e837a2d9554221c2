"""What an S3 error is: one that may pass, or one that is final, and then which sentence tells it."""

import asyncio
import contextlib
import os
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import aiohttp
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

from hydramix_dist.config.store import store_settings
from hydramix_dist.errors import DamagedError, StoreAwayError, UserError

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
_SKEW = timedelta(minutes=15)  # Amazon's, and SeaweedFS's
_CLOCK = "%Y-%m-%d %H:%M:%S UTC"
# Throttling by other names, and uploads that arrived otherwise than they were sent.
_PASSING_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout"} | {
    "ConditionalRequestConflict",
    "OperationAborted",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}


class ShortBodyError(ConnectionError):
    """Fewer bytes came than were announced."""


class LostUploadError(OSError):
    """The store does not know an upload any more that is under way, or that was ended before: it is sent anew."""


def may_pass(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    answer = answer_to(error)
    if answer is not None:
        code, status = answer
        return code in _PASSING_CODES or status == 429 or (status >= 500 and status != 501)
    final = isinstance(error, SSLError) or _is_tls(error) or _reading_authorities(error) is not None
    return isinstance(error, _PASSING) and not final


def cause(error: BaseException) -> str:
    """Return which of telemetry's causes of retries an error that may pass belongs to."""
    answer = answer_to(error)
    if answer is not None:
        code, status = answer
        throttled = status == 429 or "Throttling" in code or code in ("SlowDown", "RequestLimitExceeded")
        return "throttled" if throttled else "server"
    # Before the others: both are kinds of connection errors, or wrapped by them.
    if isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError):
        return "timeout"
    short_body = ShortBodyError | aiohttp.ClientPayloadError | asyncio.IncompleteReadError | IncompleteReadError
    return "short" if isinstance(error, short_body) else "connection"


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
    if "WRONG_VERSION_NUMBER" in str(error):
        return UserError(f"{where}: what answers there speaks no TLS; is the endpoint http:// instead of https://?")
    if isinstance(error, SSLError) or _is_tls(error):
        return UserError(
            f"{where}: the server's certificate was not accepted ({short(error)}); give the PEM file of its authority "
            "as AWS_CA_BUNDLE or as ca_bundle in HYDRAMIX_STORE"
        )
    unread = _reading_authorities(error)
    if unread is not None:
        return UserError(
            f"{where}: the certificate authorities in {store_settings().ca_bundle or os.environ.get('AWS_CA_BUNDLE')} "
            f"cannot be read ({short(unread)}); give a PEM file as AWS_CA_BUNDLE or as ca_bundle in "
            "HYDRAMIX_STORE"
        )
    if isinstance(error, LostUploadError):
        return UserError(
            f"cannot write {where}: twice the store has forgotten the upload while it was under way; a lifecycle rule "
            "of the bucket that ends uploads must leave them some hours"
        )
    if isinstance(error, FlexibleChecksumError):
        return DamagedError(
            f"cannot read {where}: twice it arrived otherwise than the store recorded it ({short(error)}); it is "
            "damaged there or on the way"
        )
    answer = answer_to(error)
    if answer is None:
        return UserError(f"{where}: {short(error)}") if isinstance(error, BotoCoreError | ValueError) else None
    code, status = answer
    wrong_clock = _clocks(error, code, status)
    if wrong_clock is not None:
        return UserError(f"cannot {action} {where}: {wrong_clock}")
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return UserError(
            f"cannot {action} {where}: the credentials are not valid ({code}); check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or the profile"
        )
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
    return UserError(f"cannot {action} {where}: the store refuses it ({code}: {short(error)})")


def answer_to(error: BaseException) -> tuple[str, int] | None:
    """Return (code, HTTP status) of what the server said, None where it said nothing."""
    said = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(said, ClientError):
        return None
    code = str(said.response.get("Error", {}).get("Code", ""))
    status = said.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code, int(status or (code if code.isdigit() else 0))


def _clocks(error: BaseException, code: str, status: int) -> str | None:
    """Return what both clocks say where a request was refused for that, None where it was not.

    The answer to HEAD has no body and so no code; other servers have other codes. But a 403 from a server whose clock
    is so far from this one's has no other cause: signatures that old, or that young, are not valid.
    """
    here = datetime.now(UTC)
    there = _server_time(error)
    apart = timedelta(0) if there is None else abs(here - there)
    if code != "RequestTimeTooSkewed" and (status != 403 or apart <= _SKEW):
        return None
    mine = f"the clock of {socket.gethostname()} says {here:{_CLOCK}}"
    if there is None:
        return f"{mine}, which is too far from the store's ({code}); set it (NTP)"
    minutes, seconds = divmod(round(apart.total_seconds()), 60)
    return (
        f"{mine}, the store's {there:{_CLOCK}}, {minutes} min {seconds} s apart, and more than "
        f"{_SKEW.seconds // 60} min are refused; set the one that is wrong (NTP)"
    )


def _server_time(error: BaseException) -> datetime | None:
    """Return the server's clock when it answered: as its error says, else as its Date header does."""
    said = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(said, ClientError):
        return None
    told = said.response.get("Error", {}).get("ServerTime")
    with contextlib.suppress(ValueError):
        if told:
            return datetime.fromisoformat(str(told)).astimezone(UTC)
    header = said.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    with contextlib.suppress(ValueError):
        return None if header is None else parsedate_to_datetime(header).astimezone(UTC)
    return None


def _is_tls(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientSSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _reading_authorities(error: BaseException) -> BaseException | None:
    """Return why the PEM file cannot be read, which aiobotocore finds out, and wraps, at the first request."""
    inner = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
    return inner if isinstance(inner, FileNotFoundError | PermissionError | IsADirectoryError | ssl.SSLError) else None


def gave_up(where: str, server: str, tries: int, seconds: float, error: BaseException) -> StoreAwayError:
    """Return what to tell of a store that gave no good answer in so many tries and seconds."""
    answer = answer_to(error)
    last = f"{answer[1]} {answer[0]}" if answer else short(error)
    tried = "1 try" if tries == 1 else f"{tries} tries"
    return StoreAwayError(
        f"{where}: {server} gave no good answer in {seconds:.0f} s ({tried}, the last: {last}); what was saved stays, "
        "and the same command goes on when the store is back"
    )


def short(error: BaseException) -> str:
    """Return an error's text on one line of at most 200 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
