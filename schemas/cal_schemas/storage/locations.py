"""Opens, lists and writes files wherever they are: a `pathlib.Path` is local, an `ObjectPath` lies in a store."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.object_path import ObjectPath

Location: TypeAlias = Path | ObjectPath

_SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "hf": "hf"}
_HUB = re.compile(
    r"datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/@]+))?(?:/(?P<key>.*))?",
    re.DOTALL | re.ASCII,
)
_PAGE = re.compile(r"datasets/[\w.-]+/[\w.-]+")
_SHORT = re.compile(
    r"(?:datasets/)?(?P<place>\w[\w.-]*/(?:[\w-]+(?:@[^/@:]+)?|\w[\w.-]*(?:@[^/@:]+)?/[^:]+))", re.ASCII
)
"""A data set without `hf://datasets/`, or a place in one; a name with a dot alone is a file's."""
_BACKSLASH_OR_NUL = ("\\", "\0")
_log = logging.getLogger(__name__)


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
    try:
        partial.write_text(text, encoding="utf-8")
    except OSError as error:
        error.filename = error.filename or str(path)  # A full disk is met where no name is known.
        raise
    partial.replace(path)


def lies_in(inner: Location, outer: Location) -> bool:
    """Whether one resolved location is the other or lies below it."""
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.is_relative_to(outer)
    return isinstance(inner, ObjectPath) and inner.is_relative_to(outer)


def location(path: str | os.PathLike[str] | ObjectPath) -> Location:
    """What the user typed, as something to open: a path, `file://`, `s3://`, `gs://` or `az://bucket/key`, `hf://`.

    Raises ConfigError for any other scheme, and for a URL without a bucket.
    """
    if isinstance(path, ObjectPath):
        return path
    text = os.fspath(path)
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, mark, _ = text.partition(":/")
        if mark and scheme in _SCHEMES:
            # Else a folder of this name would be made here.
            raise ConfigError(f"{text}: the URL of a store has two slashes, {scheme}://bucket/key")
        return Path(text)
    if scheme == "file":
        parsed = urlsplit(text)
        if parsed.netloc not in ("", "localhost"):
            raise ConfigError(f"{text}: a file:// URL of another host; write file:///path")
        return Path(unquote(parsed.path))
    if scheme in ("http", "https") and (page := _PAGE.search(rest)):
        raise ConfigError(f"{text}: a page of the Hub; what lies there is hf://{page[0]}")
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"{text}: no store is known for {scheme}://; expected a path, file://, s3://, gs://, az:// or hf://"
        )
    if scheme == "hf":
        return _on_the_hub(text, rest)
    bucket, _, key = rest.partition("/")
    if not bucket or any(mark in rest for mark in _BACKSLASH_OR_NUL):
        raise ConfigError(f"{text}: expected {scheme}://bucket/key")
    if "@" in bucket or ":" in bucket:
        # An account in Azure's own spelling, or credentials, which no URL of this project holds.
        raise ConfigError(
            f"{text}: write {scheme}://bucket/key; account and credentials belong into the environment "
            "(AZURE_STORAGE_ACCOUNT_NAME, AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, …)"
        )
    return ObjectPath(_SCHEMES[scheme], bucket, key.removesuffix("/"))


def _on_the_hub(text: str, rest: str) -> ObjectPath:
    """A data set's repository, and what lies in it; a revision is spelled with `%2F` for its slashes."""
    if not (found := _HUB.fullmatch(rest)) or any(mark in rest for mark in _BACKSLASH_OR_NUL):
        raise ConfigError(f"{text}: expected hf://datasets/ORG/NAME, with @REVISION and /FILE where they are wanted")
    revision = "" if found["revision"] is None else f"@{quote(unquote(found['revision']), safe='')}"
    return ObjectPath("hf", f"datasets/{found['repo']}{revision}", (found["key"] or "").removesuffix("/"))


def on_the_hub(path: str | Location) -> str:
    """Of a path that is not there, ` (on the Hub: hf://…)` where it may have been meant so, else nothing."""
    found = _SHORT.fullmatch(str(path))
    if not found or Path(str(path).partition("/")[0]).exists():
        return ""
    return f" (on the Hub: hf://datasets/{found['place']})"


def counts_as_file(path: Path) -> bool:
    """A file, or a dangling link: what it names is missed and not passed over."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def files_below(folder: Location, wanted: Callable[[Location], bool] = lambda _: True) -> list[Location]:
    """All files below that are `wanted`, sorted; names that start with a dot, and what lies below them, are left out.

    Linked folders are searched as well, after all others: a file that has a name without links keeps it. No folder is
    searched twice, and a link to a folder above itself is not followed. A folder that this user may not read is a
    warning (a disk's `lost+found`). Raises StoreError for one that its disk or share does not hand out.
    """
    if isinstance(folder, ObjectPath):
        shown = (item for item in folder.files() if not any(p.startswith(".") for p in item.relative_to(folder).parts))
        return [item for item in shown if wanted(item)]

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | PermissionError):
            raise StoreError(f"{error.filename} cannot be searched now: {error.strerror}") from error
        if isinstance(error, PermissionError):
            _log.warning("%s cannot be searched, so what it holds is left out: %s", error.filename, error.strerror)

    files: list[Path] = []
    searched: set[str] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for top in waiting:
            for at, folders, names in os.walk(top, onerror=unreadable):
                if (real := os.path.realpath(at)) in searched:
                    folders.clear()
                    continue
                searched.add(real)
                folders[:] = [name for name in folders if not name.startswith(".")]
                links += [
                    link
                    for link in (Path(at, name) for name in folders)
                    if link.is_symlink() and not Path(real).is_relative_to(link.resolve())
                ]
                visible = (Path(at, name) for name in names if not name.startswith("."))
                # The name first: asking a file system about a million images takes long.
                files += [file for file in visible if wanted(file) and counts_as_file(file)]
        waiting = sorted(links)
    return [*sorted(files)]


class WholeParquetFile(pq.ParquetFile):  # type: ignore[misc]  # pyarrow has no types
    """Gives as many rows as its footer says, or raises ArrowInvalid.

    Arrow passes over a page whose header names a kind that it does not know, one flipped bit away from all others, and
    gives fewer rows without a word; no checksum covers a header.
    """

    def iter_batches(self, *args: Any, row_groups: Sequence[int] | None = None, **options: Any) -> Iterator[Any]:
        """As of a ParquetFile."""
        groups, rows = range(self.num_row_groups) if row_groups is None else row_groups, 0
        for batch in super().iter_batches(*args, row_groups=groups, **options):
            rows += batch.num_rows
            yield batch
        self._check(rows, groups)

    def read_row_group(self, i: int, *args: Any, **options: Any) -> Any:
        """As of a ParquetFile."""
        table = super().read_row_group(i, *args, **options)
        self._check(table.num_rows, [i])
        return table

    def read(self, *args: Any, **options: Any) -> Any:
        """As of a ParquetFile."""
        table = super().read(*args, **options)
        self._check(table.num_rows, range(self.num_row_groups))
        return table

    def _check(self, rows: int, groups: Sequence[int]) -> None:
        if rows != (there := sum(self.metadata.row_group(group).num_rows for group in groups)):
            raise pa.ArrowInvalid(f"{rows} of {there} rows can be read: the header of a page is broken")


def open_parquet(path: str | Location, *, verify: bool = False) -> WholeParquetFile:
    """A Parquet file of any place, open for reading; a context manager. `verify`: pages against their checksums."""
    where = location(path)
    if isinstance(where, ObjectPath):
        # Columns of a row group are fetched in few large requests.
        return WholeParquetFile(where.open_random(), pre_buffer=True, page_checksum_verification=verify)
    # Absolute: Arrow takes `a::b` and `~` at the beginning of a path for a URI and a home.
    return WholeParquetFile(where.absolute(), page_checksum_verification=verify)


def read_footer(path: str | Location) -> pq.FileMetaData:
    """Row counts, statistics, key-value pairs and schema of a Parquet file."""
    with open_parquet(path) as file:
        return file.metadata
