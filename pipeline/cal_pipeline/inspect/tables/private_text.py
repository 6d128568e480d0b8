"""Takes out of a column's texts what is of this machine alone: paths of its folders, and secrets in URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.sources.column_types import plain_type
from cal_pipeline.sources.values import is_image_file
from cal_schemas.metadata import ShardMetadata
from cal_schemas.redaction import redacted, unsigned
from cal_schemas.storage.locations import Location

_SECRET = r"://[^/\s]*@|(?i:sig|signature|token|credential|password|secret|apikey|[-_]key)=|\bhf_[A-Za-z0-9]{20}"
_ABSOLUTE = re.compile(r"(?<![\w:/.~-])(?:/[^\s/'\",:;()]+)+/")
"""Folders of an absolute path, in a sentence."""


class PrivateText:
    """Knows the folders that annotated shards came from.

    Args:
        metadata: of the shards.
        files: where they lie.
        image_folder: where their images lie now, if not where they did.
    """

    def __init__(
        self, metadata: Iterable[ShardMetadata], files: Iterable[Location], image_folder: Location | None = None
    ) -> None:
        sources = [item.source for item in metadata]
        self._uris = _shortest({source.uri for source in sources})
        self._data_paths = _shortest({source.data_path for source in sources})
        folders = {
            str(Path.home()),
            str(Path.cwd()),
            str(image_folder or ""),
            *(_above(str(f.absolute())) for f in files),
        }
        folders |= {text for source in sources for text in (source.image_folder or "", _above(source.uri))}
        folders |= {path if Path(path).is_dir() else _above(path) for path in self._data_paths}
        longest_first = sorted((item.rstrip("/") for item in folders if item.startswith("/")), key=len, reverse=True)
        listed = "|".join(re.escape(item) for item in longest_first if item) or re.escape("\0")
        self._anywhere = f"(?:{listed})(?:/|$|[\\s'\",:;)])|{_SECRET}"
        """As RE2 has it, which cannot look behind: what it finds is looked at again."""
        self._of_folder = re.compile(rf"(?:\bfile://|(?<![\w:/.~-]))(?:{listed})(?:/|(?=$|[\s'\",:;)]))")

    def uri(self, uri: str) -> str:
        """A source's place without the folders that are of this machine; distinct ones stay distinct."""
        return redacted(self._uris.get(uri) or self.text(uri))

    def data_path(self, data_path: str) -> str:
        """The same of what was given as `--data_path`."""
        return redacted(self._data_paths.get(data_path) or self.text(data_path))

    def text(self, text: str) -> str:
        """A value without this machine's folders and without secrets of URLs."""
        text = unsigned(self._of_folder.sub("", text))
        return redacted(text) if re.search(_SECRET, text) else text

    def sentence(self, text: str) -> str:
        """The same of a message, which may name any file of this machine."""
        return _ABSOLUTE.sub("", self.text(text))

    def column(self, column: pa.Array, clean: Callable[[str], str] | None = None) -> pa.Array:
        """The column with every text in it, however deep, cleaned; itself where there is nothing to clean."""
        if clean is None and not any(self._is_private(leaf) for leaf in _texts(column)):
            return column
        return _replaced(column, lambda value: (clean or self.text)(value) if isinstance(value, str) else value)

    def _is_private(self, leaf: pa.Array) -> bool:
        return bool(pc.any(pc.match_substring_regex(leaf, self._anywhere)).as_py())


def _texts(column: pa.Array) -> Iterable[pa.Array]:
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        yield from _texts(column.storage)
    elif pa.types.is_dictionary(kind):
        yield from _texts(column.dictionary)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield column
    elif pa.types.is_string_view(kind):
        yield column.cast(pa.large_string())
    elif pa.types.is_map(kind):
        yield from _texts(column.keys)
        yield from _texts(column.items)
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            yield from _texts(part)
    elif pa.types.is_nested(kind):
        yield from _texts(column.flatten())


def without_images(column: pa.Array) -> pa.Array:
    """The column with null for the content of every image in it, however deep; itself where no value could be one."""
    if not holds_bytes(column.type) and not any(_has_data_url(leaf) for leaf in _texts(column)):
        return column
    return _replaced(column, lambda value: None if isinstance(value, bytes | str) and is_image_file(value) else value)


def _has_data_url(leaf: pa.Array) -> bool:
    return bool(pc.any(pc.starts_with(leaf, "data:", ignore_case=True)).as_py())


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column's values are or hold bytes, which may be those of a file."""
    plain = plain_type(kind)
    return bool(pa.types.is_binary(plain)) or any(holds_bytes(plain.field(n).type) for n in range(plain.num_fields))


def _replaced(column: pa.Array, instead: Callable[[Any], Any]) -> pa.Array:
    """The column with another value in place of every one in it that holds no others."""
    values = column.to_pylist(maps_as_pydicts=None)
    return pa.array([_walked(value, instead) for value in values], column.type)


def _walked(value: Any, instead: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _walked(item, instead) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_walked(item, instead) for item in value)
    return [_walked(item, instead) for item in value] if isinstance(value, list) else instead(value)


def _above(place: str) -> str:
    """The folder of a path, or what is before the last part of a URL."""
    return place.rpartition("/")[0]


def _shortest(places: set[str]) -> dict[str, str]:
    """Each place -> what tells it from the others: absolute paths without the folders that they share."""
    absolute = [place for place in places if place.startswith("/")]
    shared = os.path.commonpath([_above(place) or "/" for place in absolute]) if absolute else ""
    return {place: os.path.relpath(place, shared) if place in absolute else place for place in places}
