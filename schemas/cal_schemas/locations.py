"""Files wherever they are: `pathlib.Path` for local ones, `ObjectPath` for objects in `s3://` and `gs://` stores.

`ObjectPath` speaks as much of Path's language as this project uses, so code that opens, lists and names files does not
ask where they are. What an object store cannot do (links, renames in place, appending) it has no method for.

Over 250 lines, because the stores' `ObjectPath` answers to Path's many names: one method of two lines each.
"""

from __future__ import annotations

import fnmatch
import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeAlias, cast
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq

from cal_schemas.errors import ConfigError

_SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs"}
_READ_AHEAD = 8 * 2**20
_BACKSLASH_OR_NUL = ("\\", "\0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """What a store tells of an object without sending it."""

    key: str
    size: int
    etag: str
    """Changes whenever the content does."""
    mtime_ns: int = 0

    @property
    def st_size(self) -> int:
        """As in os.stat_result."""
        return self.size

    @property
    def st_mtime_ns(self) -> int:
        """As in os.stat_result."""
        return self.mtime_ns


class Backend(Protocol):
    """One kind of object store. Failing requests are retried inside; what is left is raised as StoreError."""

    def info(self, bucket: str, key: str) -> ObjectInfo | None:
        """None when there is no such object."""

    def objects(self, bucket: str, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """All objects whose keys start with `prefix`, in order of their keys."""

    def read(self, bucket: str, key: str, start: int, stop: int, etag: str) -> bytes:
        """Bytes [start, stop) of the object as it was when it had this etag; FileNotFoundError, StoreError."""

    def read_all(self, bucket: str, key: str) -> bytes:
        """The whole object, in one request."""

    def upload(self, bucket: str, key: str, content: Path | bytes, *, if_absent: bool) -> bool:
        """Publishes whole content in one step; False, and nothing changed, when it had to be absent and was not."""

    def delete(self, bucket: str, key: str) -> None:
        """Harmless when there is no such object."""

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        """(key, upload id) of uploads that were begun below `prefix` and not ended."""

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        """Gives its storage back."""


def backend(scheme: str) -> Backend:
    """The store of a scheme; one client per process, because connections do not survive a fork."""
    return _backend(scheme, os.getpid())


@functools.lru_cache(maxsize=4)
def _backend(scheme: str, _pid: int) -> Backend:
    if scheme == "s3":
        from cal_schemas.s3 import S3

        return S3()
    from cal_schemas.fsspec_store import google_storage

    return google_storage()


@dataclass(frozen=True, slots=True, order=True)
class ObjectPath:
    """A key in a bucket: an object, or the prefix of several, as a path is a file or a directory."""

    scheme: str
    bucket: str
    key: str = ""
    known: ObjectInfo | None = field(default=None, compare=False, repr=False)
    """From a listing: saves the request that would ask again."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def __truediv__(self, name: str | PurePosixPath) -> ObjectPath:
        return replace(self, key="/".join(part for part in (self.key, str(name).strip("/")) if part), known=None)

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """As of a Path."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """As of a Path."""
        return PurePosixPath(self.name).stem

    @property
    def parts(self) -> tuple[str, ...]:
        """Bucket and the parts of the key."""
        return (f"{self.scheme}://{self.bucket}", *self.key.split("/"))

    @property
    def parent(self) -> ObjectPath:
        """The prefix that the object lies in."""
        return replace(self, key=self.key.rpartition("/")[0], known=None)

    @property
    def parents(self) -> tuple[ObjectPath, ...]:
        """All prefixes that the object lies in, the nearest first, the bucket last."""
        above = self.key.split("/")[:-1]
        return tuple(replace(self, key="/".join(above[:stop]), known=None) for stop in range(len(above), -1, -1))

    def with_name(self, name: str) -> ObjectPath:
        """As of a Path."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> ObjectPath:
        """As of a Path."""
        return self.with_name(self.stem + suffix)

    def resolve(self) -> ObjectPath:
        """Itself: a key is absolute and no link."""
        return self

    def absolute(self) -> ObjectPath:
        """Itself."""
        return self

    def is_relative_to(self, other: object) -> bool:
        """Whether it is `other` or lies under it."""
        if not isinstance(other, ObjectPath) or (self.scheme, self.bucket) != (other.scheme, other.bucket):
            return False
        return not other.key or self.key == other.key or self.key.startswith(f"{other.key}/")

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """Key below `other`."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(self.key[len(other.key) :].lstrip("/"))

    @property
    def _store(self) -> Backend:
        return backend(self.scheme)

    @property
    def _below(self) -> str:
        return f"{self.key}/" if self.key else ""

    def stat(self) -> ObjectInfo:
        """Size and etag; FileNotFoundError when there is no such object."""
        found = self.known or (self._store.info(self.bucket, self.key) if self.key else None)
        if found is None:
            raise FileNotFoundError(2, "No such object", str(self))
        return found

    def is_file(self) -> bool:
        """Whether the object exists."""
        return self.known is not None or bool(self.key and self._store.info(self.bucket, self.key))

    def is_dir(self) -> bool:
        """Whether an object lies below."""
        return next(iter(self._store.objects(self.bucket, self._below, limit=1)), None) is not None

    def exists(self) -> bool:
        """Whether it is an object or the prefix of one."""
        return self.is_file() or self.is_dir()

    def files(self) -> Iterator[ObjectPath]:
        """All objects below, in order of their keys; the empty ones that stand for folders are left out."""
        for item in self._store.objects(self.bucket, self._below):
            if not item.key.endswith("/"):
                yield ObjectPath(self.scheme, self.bucket, item.key, item)

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects at any depth whose name matches."""
        return (item for item in self.files() if fnmatch.fnmatchcase(item.name, pattern))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects directly below whose name matches."""
        return (item for item in self.rglob(pattern) if item.parent == self)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: prefixes need not be made."""

    def open_random(self) -> ObjectFile:
        """For a reader that seeks: each read is one request of exactly those bytes."""
        return ObjectFile(self)

    def open(self, mode: str = "rb") -> BinaryIO:
        """For a reader that goes from start to end."""
        if mode != "rb":
            raise ValueError(f"{self}: objects are written whole (write_bytes, upload), not opened with mode {mode!r}")
        return cast(BinaryIO, io.BufferedReader(ObjectFile(self), buffer_size=_READ_AHEAD))

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self._store.read_all(self.bucket, self.key)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> int:
        """Replaces the object in one step."""
        self._store.upload(self.bucket, self.key, data, if_absent=False)
        return len(data)

    def write_text(self, data: str, encoding: str = "utf-8") -> int:
        """Replaces the object in one step."""
        return self.write_bytes(data.encode(encoding))

    def put_if_absent(self, data: bytes) -> bool:
        """Writes the object unless there is one; False when there was, and it stays."""
        return self._store.upload(self.bucket, self.key, data, if_absent=True)

    def upload(self, local: Path, *, if_absent: bool) -> bool:
        """Publishes a local file in one step; False when it had to be absent and another was first."""
        return self._store.upload(self.bucket, self.key, local, if_absent=if_absent)

    def replace(self, target: ObjectPath) -> ObjectPath:
        """Moves a small object (both exist for a moment)."""
        target.write_bytes(self.read_bytes())
        self.unlink()
        return target

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        if not missing_ok:
            self.stat()
        self._store.delete(self.bucket, self.key)

    def unfinished_uploads(self) -> list[tuple[str, str]]:
        """(key, upload id) of multipart uploads below that were begun and not ended."""
        return self._store.uploads(self.bucket, self._below)

    def abort_upload(self, key: str, upload: str) -> None:
        """Ends one of them; nothing was visible, nothing is."""
        self._store.abort_upload(self.bucket, key, upload)


Location: TypeAlias = Path | ObjectPath


class ObjectFile(io.RawIOBase):
    """An object as a seekable file, pinned to the content it had when it was opened."""

    def __init__(self, path: ObjectPath) -> None:
        self._path, self._info, self._at = path, path.stat(), 0
        self.name = str(path)

    def readable(self) -> bool:
        """As io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """As io.RawIOBase."""
        return True

    def tell(self) -> int:
        """As io.RawIOBase."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As io.RawIOBase."""
        self._at = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size}[whence] + offset)
        return self._at

    def size(self) -> int:
        """Of the object, in bytes."""
        return self._info.size

    def readinto(self, target: Any) -> int:
        """As io.RawIOBase."""
        stop = min(self._at + len(target), self._info.size)
        if stop <= self._at:
            return 0
        path = self._path
        data = backend(path.scheme).read(path.bucket, path.key, self._at, stop, self._info.etag)
        target[: len(data)] = data
        self._at += len(data)
        return len(data)


def partial_of(path: Location) -> Location:
    """What `write_whole` writes to before the name is right."""
    return path.with_suffix(".new")


def write_whole(path: Location, text: str) -> None:
    """Writes a small file in one step: readers see the old one or the new one."""
    if isinstance(path, ObjectPath):
        path.write_text(text)
        return
    partial = partial_of(path)
    assert isinstance(partial, Path)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def lies_in(inner: Location, outer: Location) -> bool:
    """Whether one resolved location is the other or lies below it."""
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.is_relative_to(outer)
    return isinstance(inner, ObjectPath) and inner.is_relative_to(outer)


def is_url(path: object) -> bool:
    """Whether a path as the user typed it names a scheme."""
    return "://" in str(path)


def location(path: str | os.PathLike[str] | ObjectPath) -> Location:
    """What the user typed, as something to open: a path, `file://`, `s3://bucket/key` or `gs://bucket/key`.

    Raises ConfigError for any other scheme, and for a URL without a bucket.
    """
    if isinstance(path, ObjectPath):
        return path
    text = os.fspath(path)
    scheme, mark, rest = text.partition("://")
    if not mark:
        return Path(text)
    if scheme == "file":
        parsed = urlsplit(text)
        if parsed.netloc not in ("", "localhost"):
            raise ConfigError(f"{text}: a file:// URL of another host; write file:///path")
        return Path(unquote(parsed.path))
    if scheme not in _SCHEMES:
        raise ConfigError(f"{text}: no store is known for {scheme}://; expected a path, file://, s3:// or gs://")
    bucket, _, key = rest.partition("/")
    if not bucket or any(mark in rest for mark in _BACKSLASH_OR_NUL):
        raise ConfigError(f"{text}: expected {scheme}://bucket/key")
    return ObjectPath(_SCHEMES[scheme], bucket, key.strip("/"))


def open_parquet(path: str | Location, *, verify: bool = False) -> pq.ParquetFile:
    """A Parquet file of any place, open for reading; a context manager. `verify`: pages against their checksums."""
    where = location(path)
    if isinstance(where, ObjectPath):
        # Columns of a row group are fetched in few large requests.
        return pq.ParquetFile(where.open_random(), pre_buffer=True, page_checksum_verification=verify)
    return pq.ParquetFile(where, page_checksum_verification=verify)


def read_footer(path: str | Location) -> pq.FileMetaData:
    """Row counts, statistics, key-value pairs and schema of a Parquet file."""
    with open_parquet(path) as file:
        return file.metadata
