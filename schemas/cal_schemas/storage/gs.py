"""Serves `gs://` through google-cloud-storage, whose own retries, credentials and resumable uploads it uses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.protocol import ObjectInfo
from cal_schemas.storage.store_errors import access_denied, one_line

GIVE_UP_AFTER_S = 40.0
"""Waits of 0.5 s, 1 s, 2 s, … are over by then."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
PART_BYTES = 16 * 2**20
"""Files above two parts are uploaded in parts; a multiple of 256 KiB."""
_CONNECTIONS = 64
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 20.0
_WRITER = "cal-writer"
_FIELDS = "items(name,size,etag,generation,updated),nextPageToken"
_NO_CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a key file, run `gcloud auth application-default login`, or give this "
    "machine a service account (on a cluster: every node)"
)
_Result = TypeVar("_Result")


class GoogleStorage:
    """The backend of `gs://`; raises ConfigError when google-cloud-storage is not installed."""

    def __init__(self) -> None:
        try:
            import google.api_core.exceptions as errors
            import google.auth.exceptions as auth_errors
            import google.cloud.storage.exceptions as transfer_errors
            import requests
            import urllib3.exceptions
            from google.cloud.storage import Client
            from google.cloud.storage.retry import DEFAULT_RETRY
        except ImportError as error:
            raise ConfigError("gs:// needs google-cloud-storage: pip install 'cal-vlm[gs]'") from error
        self._errors, self._auth_errors = errors, auth_errors
        self._failures = (
            errors.GoogleAPIError, transfer_errors.InvalidResponse, transfer_errors.DataCorruption,
            requests.RequestException, urllib3.exceptions.HTTPError,
        )  # fmt: skip
        retry = DEFAULT_RETRY.with_delay(initial=_FIRST_WAIT_S, maximum=_LONGEST_WAIT_S, multiplier=2.0)
        self._patience = {"retry": retry.with_timeout(GIVE_UP_AFTER_S), "timeout": (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)}
        # A thread of the library would ask for the bucket itself, for traces, which needs a right that objects do not.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        # A bucket's name is enough for objects: no project is looked for.
        self._client = self._ask("gs://", lambda: Client(project="none"))
        for scheme in ("http://", "https://"):
            self._client._http.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))

    def _ask(self, uri: str, call: Callable[[], _Result], *, reading: bool = False) -> _Result:
        """The call's result, its errors in the words of `Backend`; the library has asked again where that may help."""
        errors = self._errors
        try:
            return call()
        except errors.NotFound as error:
            raise FileNotFoundError(errno.ENOENT, "No such object", uri) from error
        except errors.PreconditionFailed as error:
            raise FileExistsError(errno.EEXIST, "Object exists", uri) from error
        except errors.Forbidden as error:
            message = (
                f"{uri}: forbidden ({one_line(error)}); without storage.objects.list a missing object looks so too"
            )
            raise (StoreError if reading else access_denied)(message) from error
        except (errors.Unauthorized, self._auth_errors.GoogleAuthError) as error:
            # Where tokens come from may be out of reach for a moment.
            kind = StoreError if isinstance(error, self._auth_errors.TransportError) else access_denied
            raise kind(f"{uri}: {one_line(error)}; {_NO_CREDENTIALS}") from error
        except self._failures as error:
            raise StoreError(f"{uri}: {one_line(error)}") from error

    def _blob(self, bucket: str, key: str, **options: Any) -> Any:
        return self._client.bucket(bucket).blob(key, **options)

    def info(self, bucket: str, key: str) -> ObjectInfo | None:
        """As `Backend.info`."""
        get = self._client.bucket(bucket).get_blob
        blob = self._ask(_uri(bucket, key), lambda: get(key, **self._patience), reading=True)
        return None if blob is None else _info(blob)

    def objects(self, bucket: str, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """As `Backend.objects`."""
        uri = _uri(bucket, prefix)
        pages = self._client.list_blobs(
            bucket, prefix=prefix, max_results=limit, fields=_FIELDS, **self._patience
        ).pages
        try:
            while (page := self._ask(uri, lambda: next(pages, None))) is not None:
                yield from map(_info, page)
        except FileNotFoundError as error:
            raise StoreError(f"{uri}: no such bucket") from error

    def read(self, bucket: str, pinned: ObjectInfo, start: int, stop: int) -> bytes:
        """As `Backend.read`."""
        uri, blob = _uri(bucket, pinned.key), self._blob(bucket, pinned.key, generation=pinned.generation)
        try:
            data: bytes = self._ask(
                uri, lambda: blob.download_as_bytes(start=start, end=stop - 1, **self._patience), reading=True
            )
        except FileNotFoundError:
            # A generation that is gone was replaced, if there is another.
            if self.info(bucket, pinned.key) is None:
                raise
            raise StoreError(f"{uri}: changed while it was being read") from None
        return data

    def read_all(self, bucket: str, key: str) -> bytes:
        """As `Backend.read_all`."""
        blob = self._blob(bucket, key)
        data: bytes = self._ask(_uri(bucket, key), lambda: blob.download_as_bytes(**self._patience), reading=True)
        return data

    def upload(self, bucket: str, key: str, content: Path | bytes, writer: str, *, if_absent: bool) -> None:
        """As `Backend.upload`."""
        uri = _uri(bucket, key)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        blob = self._blob(bucket, key, chunk_size=PART_BYTES if size > 2 * PART_BYTES else None)
        blob.metadata = {_WRITER: writer}
        options = {"if_generation_match": 0 if if_absent else None, "checksum": "crc32c", **self._patience}
        try:
            if isinstance(content, bytes):
                self._ask(uri, lambda: blob.upload_from_string(content, "application/octet-stream", **options))
            else:
                self._ask(uri, lambda: blob.upload_from_filename(str(content), **options))
        except FileNotFoundError as error:
            raise StoreError(f"{uri}: no such bucket") from error

    def delete(self, bucket: str, key: str) -> None:
        """As `Backend.delete`."""
        self._ask(_uri(bucket, key), lambda: self._blob(bucket, key).delete(**self._patience))

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, Callable[[], None]]]:
        """None: Google lists no resumable uploads, takes no money for them, and forgets them after a week."""
        return []


def _uri(bucket: str, key: str) -> str:
    return f"gs://{bucket}/{key}"


def _info(blob: Any) -> ObjectInfo:
    return ObjectInfo(
        key=blob.name, st_size=blob.size, etag=blob.etag.strip('"'),
        st_mtime_ns=int(blob.updated.timestamp() * 1e6) * 1000, generation=blob.generation,
        writer=(blob.metadata or {}).get(_WRITER, ""),
    )  # fmt: skip
