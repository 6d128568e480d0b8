"""Makes samples of members of a WebDataset archive: of adjacent ones `<key>.<suffix>`.

The key ends at the first dot of the file name. What does not fit becomes the sample's `problem`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cal_pipeline.sources.images import MAX_IMAGE_BYTES, MAX_ROW_IMAGE_BYTES
from cal_pipeline.sources.rows import MAX_ROW_TEXT_BYTES, conflicting_keys, parse, sample_from_values
from cal_pipeline.sources.tar_reader import Member
from cal_pipeline.sources.values import IMAGE_SUFFIXES, VIDEO_SUFFIXES, RowError, is_empty, is_wide_text, own_images
from cal_schemas.sample import ImageRef, Sample

IMAGES = frozenset([*(suffix[1:] for suffix in IMAGE_SUFFIXES), "heif", "ppm", "pgm", "pbm", "pnm"])
TEXTS = frozenset(["json", "txt"])
MAX_MEMBERS = 20_000
"""Of one key."""
_VIDEOS = frozenset(suffix[1:] for suffix in VIDEO_SUFFIXES)
_IMAGE_SUFFIX = re.compile(r"(?:(\d{1,9})\.)?(\w+)")
_META = re.compile(r"__.*__")


@dataclass(kw_only=True, slots=True)
class Group:
    """Adjacent members of one key; `data` is filled only when rows are read."""

    key: str
    members: list[tuple[str, Member]] = field(default_factory=list)
    """(suffix in lower case, member)."""
    data: dict[str, bytes] = field(default_factory=dict)
    """Member name -> its bytes."""

    @property
    def is_row(self) -> bool:
        """True where a member is an image or a text."""
        return any(ending(suffix) in IMAGES | TEXTS for suffix, _ in self.members)


def ending(suffix: str) -> str:
    """The file type: what follows the last dot."""
    return suffix.rpartition(".")[2]


def split_name(name: str) -> tuple[str, str] | None:
    """(key, suffix), None for names that no sample has: without a dot, hidden, or WebDataset's own `__meta__`."""
    directory, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not stem or not dot or not suffix or _META.fullmatch(stem):
        return None
    return directory + slash + stem, suffix.lower()


def sample_from_group(group: Group) -> Sample:
    """One sample, whatever the members are; `data` must hold those that were small enough to read."""
    values: dict[str, Any] = {}
    problem: str | None = None
    try:
        _validate_members(group)
        value = _json_value(group)
        values = {"messages": value} if isinstance(value, list) else dict(value or {})
        named = own_images(values, f"{group.key!r}.json")
        text = _text_of(group, "txt")
        if text is not None:  # A text file ends with a newline; a caption does not.
            values["text"] = text.strip()
        elif not is_empty(values.get("caption")):
            values["text"] = None
        values |= {"image": None, "images": _images_of(group, named)}
    except RowError as error:
        problem = str(error)
    return sample_from_values({**values, "sample_id": group.key}, group.key, problem=problem)


def _validate_members(group: Group) -> None:
    seen = set()
    for suffix, member in group.members:
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise RowError(f"member name {member.name!r} leaves the archive")
        if ending(suffix) in _VIDEOS:
            raise RowError(f"member {member.name!r} is a video; only images are known")
        if ending(suffix) not in IMAGES | TEXTS:
            continue
        if suffix in seen:
            raise RowError(f"two members are named {member.name!r}")
        seen.add(suffix)
        if not member.is_file:
            raise RowError(f"member {member.name!r} is a link or a device, not a file")
        if member.name not in group.data:
            limit = MAX_ROW_TEXT_BYTES if ending(suffix) in TEXTS else MAX_IMAGE_BYTES
            raise RowError(
                f"member {member.name!r} of {member.size} bytes is too large: at most {limit}, and "
                f"{MAX_ROW_IMAGE_BYTES} for all of a sample"
            )


def _text_of(group: Group, wanted: str) -> str | None:
    name = next((member.name for suffix, member in group.members if suffix == wanted), None)
    if name is not None and is_wide_text(group.data[name], json=wanted == "json"):
        raise RowError(f"member {name!r} is UTF-16 or UTF-32 text; only UTF-8 is read")
    # Bytes that are no UTF-8 become lone surrogates here, and U+FFFD with a note in sample_from_values.
    return None if name is None else group.data[name].decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _json_value(group: Group) -> Any:
    if (text := _text_of(group, "json")) is None:
        return None
    try:
        value = parse(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"malformed JSON in {group.key!r}.json: {error}") from error
    if not isinstance(value, dict | list):
        raise RowError(f"{group.key!r}.json holds {type(value).__name__}; expected an object or a list of turns")
    if isinstance(value, dict) and (problem := conflicting_keys(value)):
        raise RowError(problem)
    return value


def _images_of(group: Group, named: Sequence[ImageRef]) -> list[dict[str, Any]]:
    """The sample's images: as its JSON names them, else `<key>.jpg`, then `<key>.0.jpg`, `<key>.1.jpg`, ….

    Names that fit no member stay paths below the image folder where the archive has no image for this key.
    """
    members = [(suffix, member.name) for suffix, member in group.members if ending(suffix) in IMAGES]
    if not members:
        return [{"bytes": ref.data, "path": ref.path} for ref in named]
    in_order = _in_order(members)
    if any(ref.data is not None for ref in named):
        if [ref.data for ref in named] != [group.data[name] for name in in_order]:
            raise RowError(f"{group.key!r}.json has images in data: URLs, and the archive others for this key: keep "
                           "one of the two")  # fmt: skip
    elif named:
        by_name = {spelling: name for suffix, name in members
                   for spelling in (suffix, name.rpartition("/")[2], name)}  # fmt: skip
        matches = {ref.path: by_name.get(str(ref.path).removeprefix("./")) for ref in named}
        if None not in matches.values():
            in_order = [str(matches[ref.path]) for ref in named]
        # The names of where the images came from, as LLaVA's data has them.
        elif any(matches.values()) or len(named) != len(in_order):
            missing = next(path for path, name in matches.items() if name is None)
            raise RowError(f"{group.key!r}.json names {len(named)} images, and {missing!r} is none of the archive's "
                           f"{len(members)} for this key")  # fmt: skip
    if not in_order:
        raise RowError(f"member {members[0][1]!r}: a key ends at its first dot, and an image's suffix is its type, "
                       "or a number and its type")  # fmt: skip
    return [{"bytes": group.data[name], "path": name} for name in in_order]


def _in_order(members: Sequence[tuple[str, str]]) -> list[str]:
    """Names of `<key>.jpg` and `<key>.<number>.jpg` by number; others, such as `<key>.mask.png`, only when named."""
    places: dict[int, str] = {}
    for suffix, name in members:
        if match := _IMAGE_SUFFIX.fullmatch(suffix):
            place = -1 if match[1] is None else int(match[1])
            if place in places:
                raise RowError(f"{places[place]!r} and {name!r} are two images for one place")
            places[place] = name
    return [places[place] for place in sorted(places)]
