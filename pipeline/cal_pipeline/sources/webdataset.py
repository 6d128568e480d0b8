"""Reads WebDataset archives into samples: finds virtual shards in one pass over the headers, and reads one.

Adjacent members `<key>.<suffix>` are one sample; the key ends at the first dot of the file name. Images and texts are
read into memory one sample at a time; nothing is written to disk.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

from cal_pipeline.sources.compression import is_compressed, open_at
from cal_pipeline.sources.formats import FilePlan, InputFormat, RowRange, cut_rows, register
from cal_pipeline.sources.images import MAX_IMAGE_BYTES, MAX_ROW_IMAGE_BYTES
from cal_pipeline.sources.reading import DamagedError, reading
from cal_pipeline.sources.rows import MAX_ROW_TEXT_BYTES
from cal_pipeline.sources.tar_reader import TarStream
from cal_pipeline.sources.webdataset_samples import (
    IMAGES,
    MAX_MEMBERS,
    TEXTS,
    Group,
    ending,
    sample_from_group,
    split_name,
)
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location

_DAMAGED = "broken tar archive"
_log = logging.getLogger(__name__)


def _groups(stream: TarStream, stop: int | None, *, load: bool) -> Iterator[Group]:
    group: Group | None = None
    for member in stream.members(stop):
        if (parts := split_name(member.name)) is None:
            continue
        key, suffix = parts
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = Group(key=key)
        group.members.append((suffix, member))
        if len(group.members) > MAX_MEMBERS:
            raise DamagedError(f"key {key!r} has more than {MAX_MEMBERS} members")
        if load and member.is_file and ending(suffix) in IMAGES | TEXTS:
            is_text = ending(suffix) in TEXTS
            allowed = MAX_ROW_TEXT_BYTES if is_text else MAX_IMAGE_BYTES
            allowed = min(allowed, MAX_ROW_IMAGE_BYTES - sum(map(len, group.data.values())))
            if member.size <= allowed:
                group.data[member.name] = stream.read(member.size)
    if group is not None:
        yield group


def plan_file(path: Location, rows_per_shard: int) -> FilePlan:
    """Reads headers only; a compressed archive is decompressed once.

    Raises ShardError for a damaged or cut archive, and for one that has the members of a sample in two places.
    """
    seen: set[bytes] = set()
    others, first_other = 0, ""

    def spans(groups: Iterator[Group]) -> Iterator[tuple[int, int, int]]:
        nonlocal others, first_other
        for group in groups:
            first = group.members[0][1]
            if not group.is_row:
                others, first_other = others + 1, first_other or first.name
                continue
            digest = hashlib.blake2b(group.key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            if digest in seen:
                raise DamagedError(
                    f"key {group.key!r} comes again at byte {first.start}; files of one sample must stand together, "
                    "and each key once: pack it again, sorted by name"
                )
            seen.add(digest)
            of_images = sum(member.size for suffix, member in group.members if ending(suffix) in IMAGES)
            yield first.start, group.members[-1][1].stop, of_images

    with reading(path, _DAMAGED), open_at(path, 0) as file:
        stream = TarStream(file, can_seek=not is_compressed(path))
        ranges = cut_rows(spans(_groups(stream, None, load=False)), rows_per_shard)
    if others:
        _log.warning("%s: %d keys have no image, .json or .txt and make no row; the first is of %r", path, others,
                     first_other)  # fmt: skip
    return FilePlan(ranges=ranges, images="inside")


def read_rows(path: Location, rows: RowRange, name: str = "") -> Iterator[Sample]:
    """Samples of one range, in order; a group that makes no usable sample is one with a `problem`.

    Raises ShardError when the range is no longer what planning saw.
    """
    with reading(path, _DAMAGED), open_at(path, rows.byte_start) as file:
        stream = TarStream(file, rows.byte_start, can_seek=not is_compressed(path))
        for group in _groups(stream, rows.byte_stop, load=True):
            if group.is_row:
                yield sample_from_group(group)


register(
    InputFormat(name="webdataset", suffixes=(".tar", ".tar.gz", ".tgz", ".tar.zst"), plan=plan_file, read=read_rows)
)
