"""Says what to do with files that no format reads, by what their names end in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

_PACKED = (".zip", ".rar", ".7z")
_TABLES = (".csv", ".tsv", ".xlsx", ".xls")
_OTHER_MEDIA = (".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".mkv", ".avi", ".mov")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def way_out(names: Iterable[str], *, unpack: str, to_parquet: str) -> str | None:
    """The way out that fits the most telling of the names, None where none is known.

    `unpack` says how an archive becomes a folder, `to_parquet` how a table becomes a file that is read.
    """
    suffixes = {PurePosixPath(name).suffix.lower() for name in names}
    ways = (
        (_PACKED, unpack),
        (_OTHER_MEDIA, "only images are known, no sound and no video"),
        (_TABLES, to_parquet),
        (_IMAGES, "images need a file that says which text is whose, as metadata.jsonl in their folder with lines "
                  '{"file_name": "a.jpg", "text": "A caption."}'),
    )  # fmt: skip
    return next((way for kinds, way in ways if suffixes.intersection(kinds)), None)
