"""Serves `s3://` through boto3: endpoint, region and credentials from the usual environment, retries from here.

Every request goes through `_retrying`, reading a body included: botocore's own retries end when the headers arrive.
Objects appear whole: a put is one step, and parts of a multipart upload are invisible until it is completed.
"""

from __future__ import annotations

import logging
import os
import random
import time
import uuid
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

    def info(self, bucket: str, key: str) -> ObjectInfo | None:
        """As `Backend.info`."""
        try:
            head = self._retrying(_uri(bucket, key), lambda: self._client.head_object(Bucket=bucket, Key=key))
        except FileNotFoundError:
            return None
        return _info(key, head["ContentLength"], head["ETag"], head["LastModified"])

    def objects(self, bucket: str, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """As `Backend.objects`."""
        more: dict[str, Any] = {"MaxKeys": limit} if limit else {}
        while True:
            page = self._retrying(
                _uri(bucket, prefix),
                lambda: self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, **more),  # noqa: B023
            )
            for item in page.get("Contents", []):
                yield _info(item["Key"], item["Size"], item["ETag"], item["LastModified"])
            if limit or not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, bucket: str, pinned: ObjectInfo, start: int, stop: int) -> bytes:
        """As `Backend.read`."""

        def get() -> bytes:
            answer = self._client.get_object(
                Bucket=bucket, Key=pinned.key, Range=f"bytes={start}-{stop - 1}", IfMatch=f'"{pinned.etag}"'
            )
            with answer["Body"] as body:
                data: bytes = body.read()
            if len(data) != stop - start:
                raise self._errors.IncompleteReadError(actual_bytes=len(data), expected_bytes=stop - start)
            return data

        return self._retrying(_uri(bucket, pinned.key), get)

    def read_all(self, bucket: str, key: str) -> bytes:
        """As `Backend.read_all`."""

        def get() -> bytes:
            with self._client.get_object(Bucket=bucket, Key=key)["Body"] as body:
                data: bytes = body.read()
            return data

        return self._retrying(_uri(bucket, key), get)

    def upload(self, bucket: str, key: str, content: Path | bytes, *, if_absent: bool) -> bool:
        """As `Backend.upload`."""
        if if_absent and not self._conditional and self.info(bucket, key) is not None:
            return False
        writer = uuid.uuid4().hex
        condition = {"IfNoneMatch": "*"} if if_absent and self._conditional else {}
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        try:
            if isinstance(content, bytes) or size <= 2 * PART_BYTES:
                data = content if isinstance(content, bytes) else content.read_bytes()
                self._retrying(
                    _uri(bucket, key),
                    lambda: self._client.put_object(
                        Bucket=bucket, Key=key, Body=data, Metadata={_WRITER: writer}, **condition
                    ),
                )
            else:
                self._upload_parts(bucket, key, content, size, writer, condition)
        except FileExistsError:
            # An answer that got lost on its way is asked for again, and then it is our own object that is in the way.
            return self._is_mine(bucket, key, writer)
        except UnknownToServerError:
            if not condition:
                raise StoreError(f"{_uri(bucket, key)}: this store does not know how to take an object") from None
            _log.warning("%s: this store has no conditional writes", _uri(bucket, key))
            self._conditional = False
            return self.upload(bucket, key, content, if_absent=if_absent)
        return True

    def _upload_parts(
        self, bucket: str, key: str, path: Path, size: int, writer: str, condition: dict[str, str]
    ) -> None:
        where, uri = {"Bucket": bucket, "Key": key}, _uri(bucket, key)
        part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
        upload = self._retrying(uri, lambda: self._client.create_multipart_upload(**where, Metadata={_WRITER: writer}))[
            "UploadId"
        ]

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            answer = self._retrying(
                f"{uri} part {number}",
                lambda: self._client.upload_part(**where, UploadId=upload, PartNumber=number, Body=data),
            )
            return {"ETag": answer["ETag"], "PartNumber": number}

        try:
            with ThreadPoolExecutor(_UPLOAD_THREADS) as pool:
                parts = list(pool.map(send, range(1, -(-size // part_bytes) + 1)))
            try:
                self._retrying(
                    uri,
                    lambda: self._client.complete_multipart_upload(
                        **where, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
                    ),
                )
            except FileNotFoundError:
                if not self._is_mine(bucket, key, writer):
                    raise StoreError(f"{uri}: its multipart upload was aborted by someone else") from None
        except BaseException:
            # A killed process does not get here: `cal-precompute --clean` does it then.
            try:
                self._client.abort_multipart_upload(**where, UploadId=upload)
            except (self._errors.ClientError, self._errors.BotoCoreError) as error:
                _log.warning("%s: an unfinished upload stays behind (%s); --clean aborts it", uri, error)
            raise

    def _is_mine(self, bucket: str, key: str, writer: str) -> bool:
        try:
            head = self._retrying(_uri(bucket, key), lambda: self._client.head_object(Bucket=bucket, Key=key))
        except FileNotFoundError:
            return False
        return bool(head.get("Metadata", {}).get(_WRITER) == writer)

    def delete(self, bucket: str, key: str) -> None:
        """As `Backend.delete`."""
        self._retrying(_uri(bucket, key), lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        """As `Backend.uploads`."""
        begun: list[tuple[str, str]] = []
        more: dict[str, str] = {}
        while True:
            page = self._retrying(
                _uri(bucket, prefix),
                lambda: self._client.list_multipart_uploads(Bucket=bucket, Prefix=prefix, **more),  # noqa: B023
            )
            begun += [
                (item["Key"], item["UploadId"]) for item in page.get("Uploads", []) if item["Key"].startswith(prefix)
            ]
            if not page.get("IsTruncated"):
                return begun
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        """As `Backend.abort_upload`."""
        try:
            self._retrying(
                _uri(bucket, key),
                lambda: self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload),
            )
        except FileNotFoundError:
            return


def _uri(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def _info(key: str, size: int, etag: str, modified: Any) -> ObjectInfo:
    return ObjectInfo(key=key, size=int(size), etag=etag.strip('"'), mtime_ns=int(modified.timestamp()) * 10**9)
