"""States what every kind of object store must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """What a store tells of an object without sending it."""

    key: str
    st_size: int
    """As in os.stat_result."""
    etag: str
    """Changes whenever the content does."""
    st_mtime_ns: int
    """As in os.stat_result."""
    generation: int | None = None
    """Google's number of this content; None in other stores."""
    writer: str = ""
    """Who uploaded it, as `upload` was told; listings may leave it out."""


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

    def upload(self, bucket: str, key: str, content: Path | bytes, writer: str, *, if_absent: bool) -> None:
        """Publishes whole content in one step; FileExistsError, and nothing changed, when it had to be absent.

        An answer that got lost is asked for again: the object that is in the way then may be this writer's own.
        """

    def delete(self, bucket: str, key: str) -> None:
        """FileNotFoundError or nothing when there is no such object."""

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, Callable[[], None]]]:
        """Keys of uploads that were begun below `prefix` and not ended, each with what gives its storage back."""
