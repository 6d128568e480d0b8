"""Stores behind fsspec: `gs://` through gcsfs, which retries by itself."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.protocol import ObjectInfo

_ATTEMPTS = 5
_FIRST_WAIT_S = 0.5
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, NotImplementedError, TypeError)
"""Not asked again. NotImplementedError is fsspec's own word for what a file system lacks, TypeError that of its methods
that take no `mode`."""
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def google_storage() -> FsspecStore:
    """The backend of `gs://`, with Google's usual credentials; ConfigError when gcsfs is not installed."""
    try:
        import gcsfs
    except ImportError as error:
        raise ConfigError("gs:// needs gcsfs: pip install 'cal-vlm[gs]'") from error
    return FsspecStore(gcsfs.GCSFileSystem(use_listings_cache=False, skip_instance_cache=True), "gs")


class FsspecStore:
    """A backend over any fsspec file system whose objects appear whole.

    Args:
        fs: the file system; its listings must not be cached.
        scheme: for messages.
    """

    def __init__(self, fs: Any, scheme: str) -> None:
        self._fs, self._scheme = fs, scheme

    def _retrying(self, bucket: str, key: str, call: Callable[[], _Result]) -> _Result:
        where = f"{self._scheme}://{bucket}/{key}"
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return call()
            except _FINAL as error:
                if isinstance(error, FileNotFoundError | FileExistsError):
                    raise
                raise StoreError(f"{where}: {type(error).__name__}: {error}") from error
            except Exception as error:  # Each file system has errors of its own.
                if attempt == _ATTEMPTS:
                    raise StoreError(f"{where}: no answer after {attempt} tries: {error}") from error
                wait = _FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
                _log.warning("%s: %s; try %d of %d in %.1f s", where, error, attempt + 1, _ATTEMPTS, wait)
                time.sleep(wait)
        raise AssertionError("unreachable")

    def info(self, bucket: str, key: str) -> ObjectInfo | None:
        """As `Backend.info`."""
        try:
            found = self._retrying(bucket, key, lambda: self._fs.info(f"{bucket}/{key}"))
        except FileNotFoundError:
            return None
        return None if found["type"] == "directory" else _info(bucket, found)

    def objects(self, bucket: str, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """As `Backend.objects`."""
        folder = f"{bucket}/{prefix}".rstrip("/")
        try:
            found = self._retrying(bucket, prefix, lambda: self._fs.find(folder, detail=True))
        except FileNotFoundError:
            return
        items = (_info(bucket, item) for _, item in sorted(found.items()))
        yield from (item for item, _ in zip((i for i in items if i.key.startswith(prefix)), range(limit or 2**62)))  # noqa: B905

    def read(self, bucket: str, key: str, start: int, stop: int, etag: str) -> bytes:
        """As `Backend.read`."""
        if stop <= start:
            return b""
        data: bytes = self._retrying(bucket, key, lambda: self._fs.cat_file(f"{bucket}/{key}", start=start, end=stop))
        if len(data) != stop - start:
            raise StoreError(f"{self._scheme}://{bucket}/{key}: changed while it was being read")
        return data

    def read_all(self, bucket: str, key: str) -> bytes:
        """As `Backend.read_all`."""
        data: bytes = self._retrying(bucket, key, lambda: self._fs.cat_file(f"{bucket}/{key}"))
        return data

    def upload(self, bucket: str, key: str, content: Path | bytes, *, if_absent: bool) -> bool:
        """As `Backend.upload`."""
        mode, path = "create" if if_absent else "overwrite", f"{bucket}/{key}"
        if if_absent and isinstance(content, Path) and self.info(bucket, key) is not None:
            return False
        try:
            if isinstance(content, bytes):
                self._retrying(bucket, key, lambda: self._fs.pipe_file(path, content, mode=mode))
            else:
                self._retrying(bucket, key, lambda: self._fs.put_file(str(content), path, mode=mode))
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise StoreError(f"{self._scheme}://{path}: no such bucket") from error
        return True

    def delete(self, bucket: str, key: str) -> None:
        """As `Backend.delete`."""
        try:
            self._retrying(bucket, key, lambda: self._fs.rm_file(f"{bucket}/{key}"))
        except FileNotFoundError:
            return

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        """As `Backend.uploads`."""
        return []  # Google's resumable uploads vanish by themselves after a week and are not listed.

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        """As `Backend.abort_upload`."""
        raise AssertionError(f"{self._scheme}://{bucket}/{key}: {upload} cannot be aborted, uploads() lists none")


def _info(bucket: str, found: dict[str, Any]) -> ObjectInfo:
    mark = found.get("etag") or found.get("ETag") or found.get("generation") or found.get("created") or ""
    key = str(found["name"]).lstrip("/").removeprefix(f"{bucket}/")
    return ObjectInfo(key=key, size=int(found["size"]), etag=str(mark).strip('"'))
