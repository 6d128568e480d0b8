"""Serves `s3://` through boto3: endpoint, region and credentials from the usual environment, retries from here.

Every request goes through `_retrying`, reading a body included: botocore's own retries end when the headers arrive.
Objects appear whole: a put is one step, and parts of a multipart upload are invisible until it is completed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.protocol import ObjectInfo
from cal_schemas.storage.s3_errors import UnknownToServerError, passes, translated
from cal_schemas.storage.store_errors import access_denied, one_line

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
PART_BYTES = 16 * 2**20
"""Files above two parts are uploaded in parts."""
_MAX_PARTS = 9000
_UPLOAD_THREADS = 4
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 20.0
_DEFAULT_ATTEMPTS = 8
_WRITER = "cal-writer"
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class S3:
    """The backend of `s3://`; raises ConfigError when boto3 is not installed."""

    def __init__(self) -> None:
        try:
            import boto3
            import botocore.config
            import botocore.exceptions
            import urllib3.exceptions
        except ImportError as error:
            raise ConfigError("s3:// needs boto3: pip install 'cal-vlm[s3]'") from error
        self._errors = botocore.exceptions
        self._passing = (
            botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError, urllib3.exceptions.HTTPError,
        )  # fmt: skip
        self._conditional = True
        try:
            self._attempts = max(1, int(os.environ.get("AWS_MAX_ATTEMPTS", _DEFAULT_ATTEMPTS)))
            self._client = boto3.session.Session().client(
                "s3",
                config=botocore.config.Config(
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    max_pool_connections=64,
                ),
            )
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise ConfigError(f"s3:// cannot be used with this environment (AWS_…): {error}") from error

    def _retrying(self, what: str, call: Callable[[], _Result]) -> _Result:
        """The call's result; waits 0.5 s, 1 s, 2 s, … before it asks again. Raises what `translated` returns."""
        errors = self._errors
        nameless = (errors.NoCredentialsError, errors.PartialCredentialsError, errors.CredentialRetrievalError)
        # A connection that breaks inside a body comes as urllib3's error, past botocore.
        passing = (*self._passing, errors.IncompleteReadError, errors.FlexibleChecksumError)
        for attempt in range(1, self._attempts + 1):
            try:
                return call()
            except errors.ClientError as error:
                if not passes(error) or attempt == self._attempts:
                    raise translated(what, error, attempt) from error
                reason = one_line(error)
            except passing as error:
                if attempt == self._attempts:
                    raise StoreError(f"{what}: no answer after {attempt} tries: {one_line(error)}") from error
                reason = f"{type(error).__name__}: {one_line(error)}"
            except nameless as error:
                raise access_denied(
                    f"{what}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this "
                    "machine a role (on a cluster: every node)"
                ) from error
            except errors.BotoCoreError as error:
                raise StoreError(f"{what}: {one_line(error)}") from error
            wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            _log.warning("%s: %s; try %d of %d in %.1f s", what, reason, attempt + 1, self._attempts, wait)
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _call(self, operation: Callable[..., Any], bucket: str, key: str, **arguments: Any) -> Any:
        return self._retrying(_uri(bucket, key), lambda: operation(Bucket=bucket, Key=key, **arguments))

    def _get(self, bucket: str, key: str, **part: str) -> bytes:
        def get() -> bytes:
            with self._client.get_object(Bucket=bucket, Key=key, **part)["Body"] as body:
                data: bytes = body.read()
            return data

        return self._retrying(_uri(bucket, key), get)

    def _pages(self, operation: Callable[..., Any], bucket: str, prefix: str, **more: Any) -> Iterator[dict[str, Any]]:
        """All pages of a listing. Not by boto3's paginator, which cannot go on after a request that failed."""
        while True:
            page = self._retrying(
                _uri(bucket, prefix), functools.partial(operation, Bucket=bucket, Prefix=prefix, **more)
            )
            yield page
            if not page.get("IsTruncated"):
                return
            more |= {name.removeprefix("Next"): value for name, value in page.items() if name.startswith("Next")}

    def info(self, bucket: str, key: str) -> ObjectInfo | None:
        """As `Backend.info`."""
        try:
            head = self._call(self._client.head_object, bucket, key)
        except FileNotFoundError:
            return None
        writer = head.get("Metadata", {}).get(_WRITER, "")
        return _info(key, head["ContentLength"], head["ETag"], head["LastModified"], writer)

    def objects(self, bucket: str, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """As `Backend.objects`."""
        size = {"MaxKeys": limit} if limit else {}
        for page in self._pages(self._client.list_objects_v2, bucket, prefix, **size):
            for item in page.get("Contents", []):
                yield _info(item["Key"], item["Size"], item["ETag"], item["LastModified"])
            if limit:
                return

    def read(self, bucket: str, pinned: ObjectInfo, start: int, stop: int) -> bytes:
        """As `Backend.read`."""
        return self._get(bucket, pinned.key, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{pinned.etag}"')

    def read_all(self, bucket: str, key: str) -> bytes:
        """As `Backend.read_all`."""
        return self._get(bucket, key)

    def upload(self, bucket: str, key: str, content: Path | bytes, writer: str, *, if_absent: bool) -> None:
        """As `Backend.upload`."""
        if if_absent and not self._conditional and self.info(bucket, key) is not None:
            raise FileExistsError(errno.EEXIST, "Object exists", _uri(bucket, key))
        condition = {"IfNoneMatch": "*"} if if_absent and self._conditional else {}
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        try:
            if isinstance(content, bytes) or size <= 2 * PART_BYTES:
                data = content if isinstance(content, bytes) else content.read_bytes()
                self._call(self._client.put_object, bucket, key, Body=data, Metadata={_WRITER: writer}, **condition)
            else:
                self._upload_parts(bucket, key, content, size, writer, condition)
        except UnknownToServerError:
            if not condition:
                raise StoreError(f"{_uri(bucket, key)}: this store does not know how to take an object") from None
            _log.warning("%s: this store has no conditional writes", _uri(bucket, key))
            self._conditional = False
            self.upload(bucket, key, content, writer, if_absent=if_absent)

    def _upload_parts(
        self, bucket: str, key: str, path: Path, size: int, writer: str, condition: dict[str, str]
    ) -> None:
        uri, part_bytes = _uri(bucket, key), max(PART_BYTES, -(-size // _MAX_PARTS))
        begun = self._call(self._client.create_multipart_upload, bucket, key, Metadata={_WRITER: writer})
        upload = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            answer = self._retrying(
                f"{uri} part {number}", lambda: self._client.upload_part(**upload, PartNumber=number, Body=data)
            )
            return {"ETag": answer["ETag"], "PartNumber": number}

        try:
            with ThreadPoolExecutor(_UPLOAD_THREADS) as pool:
                parts = {"Parts": list(pool.map(send, range(1, -(-size // part_bytes) + 1)))}
            complete = self._client.complete_multipart_upload
            try:
                self._retrying(uri, lambda: complete(**upload, MultipartUpload=parts, **condition))
            except FileNotFoundError:
                # Completed already, where the answer to that got lost.
                if (there := self.info(bucket, key)) is None or there.writer != writer:
                    raise StoreError(f"{uri}: its multipart upload was aborted by someone else") from None
        except BaseException:
            # A killed process does not get here: `cal-precompute --clean` does it then.
            try:
                self._client.abort_multipart_upload(**upload)
            except (self._errors.ClientError, self._errors.BotoCoreError) as error:
                _log.warning("%s: an unfinished upload stays behind (%s); --clean aborts it", uri, error)
            raise

    def delete(self, bucket: str, key: str) -> None:
        """As `Backend.delete`."""
        self._call(self._client.delete_object, bucket, key)

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, Callable[[], None]]]:
        """As `Backend.uploads`."""
        return [
            (item["Key"], functools.partial(self._abort, bucket, item["Key"], item["UploadId"]))
            for page in self._pages(self._client.list_multipart_uploads, bucket, prefix)
            for item in page.get("Uploads", [])
            if item["Key"].startswith(prefix)
        ]

    def _abort(self, bucket: str, key: str, upload: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._call(self._client.abort_multipart_upload, bucket, key, UploadId=upload)


def _uri(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def _info(key: str, size: int, etag: str, modified: Any, writer: str = "") -> ObjectInfo:
    at = int(modified.timestamp()) * 10**9
    return ObjectInfo(key=key, st_size=size, etag=etag.strip('"'), st_mtime_ns=at, writer=writer)
