"""Writes samples in the layouts that trainers read: LLaVA JSON, messages in JSON lines, WebDataset.

What is written is read back as the same samples, keys included: docs/data-format.md, section 7.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cal_pipeline.inspect.progress import shown_progress
from cal_pipeline.output.row_reader import NumberedRow, numbered_rows
from cal_schemas.errors import ConfigError, ImageError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import ImageRef, Sample, Turn
from cal_schemas.storage.locations import Location, location

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
"""Of an archive's members, where the format's own name is not it."""
_FROM = {"user": "human", "assistant": "gpt"}
_ROWS_PER_ARCHIVE = 10_000
_BYTES_PER_ARCHIVE = 10**9


def write_layout(
    opened: AnnotatedDataset, rows: np.ndarray, layout: str, folder: Path, image_folder: Location | None
) -> str:
    """Writes the rows of these numbers, all of which are ok, and says where their images are.

    Image files of shards that embed them, and all in an archive, are written; other images keep their paths.
    Raises ConfigError for an image that cannot be read, or where paths start in several folders.
    """
    folders = {image_folder or item.source.image_folder for item in opened.metadata}
    embed = layout == "webdataset" or any(item.carry != "paths" for item in opened.metadata) or folders == {None}
    if not embed and len(folders) > 1:
        raise ConfigError(f"image paths start in {', '.join(sorted(map(str, folders)))}: filter these shards one by "
                          "one, or write --layout webdataset, which holds the images")  # fmt: skip
    with shown_progress("rows written", len(rows)) as advance:

        def read() -> Iterator[tuple[int, Sample, list[bytes] | None]]:
            for row in numbered_rows(opened, rows, image_folder):
                yield row.number, row.sample, _image_files(row) if embed else None
                advance(1)

        _WRITERS[layout](folder, read())
    if layout == "webdataset":
        return "images in the archives"
    if embed:
        return "image paths start there"
    start = folders.pop()
    return f"image paths start at {start}" + ("" if start and location(start).is_dir() else ", which is not there")


def _image_files(row: NumberedRow) -> list[bytes]:
    try:
        return row.image_files()
    except ImageError as error:
        raise ConfigError(f"{row.sample.sample_id}: {error}. Restore its images (--image_folder), or leave the row "
                          "out") from error  # fmt: skip


_Rows = Iterator[tuple[int, Sample, list[bytes] | None]]


def _write_llava(folder: Path, rows: _Rows) -> None:
    with (folder / "data.json").open("w", encoding="utf-8") as file:
        file.write("[")
        for at, (number, sample, files) in enumerate(rows):
            images = _written(folder, number, sample.images, files)
            row: dict[str, Any] = {
                "id": sample.sample_id,
                **({"image": images[0] if len(images) == 1 else images} if images else {}),
            }
            turns = [_turn(turn, "from", _FROM.get(turn.role, turn.role), "value") for turn in sample.messages or ()]
            row |= {"conversations": turns, **_tools(sample)}
            file.write((",\n" if at else "\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def _write_messages(folder: Path, rows: _Rows) -> None:
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for number, sample, files in rows:
            images = _written(folder, number, sample.images, files)
            row = {"id": sample.sample_id, "images": images, "messages": _messages(sample), **_tools(sample)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_webdataset(folder: Path, rows: _Rows) -> None:
    archives = count()
    waiting = next(rows, None)
    while waiting is not None:
        with tarfile.open(folder / f"{next(archives):05d}.tar", "w") as archive:
            for _ in range(_ROWS_PER_ARCHIVE):
                number, sample, files = waiting
                text = {"id": sample.sample_id, "messages": _messages(sample), **_tools(sample)}
                _add(archive, f"{number:09d}.json", json.dumps(text, ensure_ascii=False).encode())
                for at, data in enumerate(files or ()):
                    _add(archive, f"{number:09d}.{at}.{_suffix(data)}", data)
                waiting = next(rows, None)
                if waiting is None or archive.offset >= _BYTES_PER_ARCHIVE:
                    break


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


_WRITERS: dict[str, Callable[[Path, _Rows], None]] = {
    "llava": _write_llava,
    "messages": _write_messages,
    "webdataset": _write_webdataset,
}
LAYOUTS = tuple(_WRITERS)


def _messages(sample: Sample) -> list[dict[str, Any]]:
    return [_turn(turn, "role", turn.role, "content") for turn in sample.messages or ()]


def _turn(turn: Turn, role_key: str, role: str, text_key: str) -> dict[str, Any]:
    return {role_key: role, text_key: turn.content, **turn.extra, **({} if turn.supervised else {"loss": False})}


def _tools(sample: Sample) -> dict[str, Any]:
    return {} if sample.tools is None else {"tools": sample.tools}


def _written(folder: Path, number: int, refs: Sequence[ImageRef], files: Sequence[bytes] | None) -> list[str | None]:
    if files is None:
        return [ref.path for ref in refs]
    names: list[str | None] = []
    for at, data in enumerate(files):
        # A name of ours: what a dataset calls its files is never a path on this disk.
        name = f"images/{number // 1000:06d}/{number:09d}-{at}.{_suffix(data)}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        names.append(name)
    return names


def _suffix(data: bytes) -> str:
    with closing(Image.open(io.BytesIO(data))) as image:
        name = str(image.format)
    return _SUFFIXES.get(name, name.lower())
