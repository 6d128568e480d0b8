"""States what every kind of object store must be able to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """What a store tells of an object without sending it."""

    key: str
    size: int
    etag: str
    """Changes whenever the content does."""
    mtime_ns: int = 0
    generation: int | None = None
    """Google's number of this content; None in other stores."""

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

    def read(self, bucket: str, pinned: ObjectInfo, start: int, stop: int) -> bytes:
        """Bytes [start, stop), one or more, of the object as it was then; FileNotFoundError, StoreError."""

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
