"""Names objects in `s3://`, `gs://`, `az://` and `hf://`, in as much of `pathlib.Path`'s language as is used here.

Code that opens, lists and names files does not ask where they are. What an object store cannot do (links, renames in
place, appending) there is no method for.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from cal_schemas.errors import StoreError
from cal_schemas.storage.factory import backend
from cal_schemas.storage.protocol import Backend, ObjectInfo

if TYPE_CHECKING:
    from cal_schemas.storage.hf import Hub

_READ_AHEAD = 8 * 2**20


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
        return self.below(str(name).strip("/"))

    def below(self, name: str) -> ObjectPath:
        """The object of that name below it, as it is spelled: `a//b` is another than `a/b`."""
        return replace(self, key="/".join(part for part in (self.key, name) if part), known=None)

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

    def pinned(self) -> ObjectPath:
        """The same in the commit that its revision is now; itself in a store that keeps no commits."""
        return replace(self, bucket=cast("Hub", self._store).pin(self.bucket)) if self.scheme == "hf" else self

    @property
    def commit(self) -> str | None:
        """Of the Hub, where it is pinned to one."""
        revision = self.bucket.partition("@")[2]
        return revision if self.scheme == "hf" and len(revision) == 40 else None

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
        info = self.known or (self._store.info(self.bucket, self.key) if self.key else None)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "No such object", str(self))
        return info

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
        self.upload(data, if_absent=False)
        return len(data)

    def write_text(self, data: str, encoding: str = "utf-8") -> int:
        """Replaces the object in one step."""
        return self.write_bytes(data.encode(encoding))

    def upload(self, content: Path | bytes, *, if_absent: bool) -> bool:
        """Publishes a local file or bytes in one step; False when it had to be absent and another was first."""
        # Spares sending a shard that cannot win; the condition on the request itself decides.
        if if_absent and isinstance(content, Path) and self._store.info(self.bucket, self.key) is not None:
            return False
        writer = uuid.uuid4().hex
        try:
            self._store.upload(self.bucket, self.key, content, writer, if_absent=if_absent)
        except FileExistsError:
            there = self._store.info(self.bucket, self.key)
            return there is not None and there.writer == writer
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        if not missing_ok:
            self.stat()
        with contextlib.suppress(FileNotFoundError):
            self._store.delete(self.bucket, self.key)

    def unfinished_uploads(self) -> list[tuple[str, Callable[[], None]]]:
        """Keys of multipart uploads below that were begun and not ended, each with what ends it: nothing is visible."""
        return self._store.uploads(self.bucket, self._below)


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
        self._at = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.st_size}[whence] + offset)
        return self._at

    def size(self) -> int:
        """Of the object, in bytes."""
        return self._info.st_size

    def readinto(self, target: Any) -> int:
        """As io.RawIOBase."""
        stop = min(self._at + len(target), self._info.st_size)
        if stop <= self._at:
            return 0
        path = self._path
        data = backend(path.scheme).read(path.bucket, self._info, self._at, stop)
        if len(data) != stop - self._at:
            raise StoreError(f"{path}: {len(data)} of {stop - self._at} bytes arrived")
        target[: len(data)] = data
        self._at += len(data)
        return len(data)
