"""Translates what an S3 server answers when it refuses into the words that the rest of the program knows."""

from __future__ import annotations

import errno
from typing import Any

from cal_schemas.errors import StoreError
from cal_schemas.storage.store_errors import access_denied

_TRY_AGAIN = {
    "ConditionalRequestConflict", "InternalError", "OperationAborted", "RequestLimitExceeded", "RequestTimeout",
    "RequestTimeTooSkewed", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
}  # fmt: skip
_CREDENTIALS = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}  # fmt: skip
_PUBLISHING = ("PutObject", "CompleteMultipartUpload")


class UnknownToServerError(Exception):
    """The server does not know this way of publishing an object (501), as some know no conditional writes."""


def passes(error: Any) -> bool:
    """Whether botocore's ClientError is of the kind that goes away by asking again."""
    code, status = _code(error)
    return code in _TRY_AGAIN or status == 429 or (status >= 500 and status != 501)


def translated(what: str, error: Any, attempts: int) -> OSError | UnknownToServerError:
    """Botocore's ClientError about `what`, as an exception of ours or of Python's."""
    code, status = _code(error)
    operation = error.operation_name
    if status == 501 and operation in _PUBLISHING:
        return UnknownToServerError(f"{what}: {error}")
    if code in ("NoSuchKey", "NoSuchUpload", "404") or (status == 404 and code != "NoSuchBucket"):
        return FileNotFoundError(errno.ENOENT, "No such object", what)
    if status == 412:
        if operation in _PUBLISHING:
            return FileExistsError(errno.EEXIST, "Object exists", what)
        return StoreError(f"{what}: changed while it was being read")
    if code == "NoSuchBucket":
        return StoreError(f"{what}: no such bucket")
    if code in _CREDENTIALS:
        return access_denied(f"{what}: the store does not take these credentials ({code}); renew them and run again")
    if status == 403:
        message = f"{what}: {operation} is forbidden ({code}); without s3:ListBucket a missing object looks so too"
        return StoreError(message) if operation in ("GetObject", "HeadObject") else access_denied(message)
    tries = f" after {attempts} tries" if attempts > 1 else ""
    return StoreError(f"{what}: {operation} failed{tries}: {error}")


def _code(error: Any) -> tuple[str, int]:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(error.response.get("Error", {}).get("Code", "")), int(status)
