"""Data that wants to hurt whoever reads it: too large, out of place, or not what it says."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zstandard

from tiny_models import sample_image

_MIB = 2**20
ONE_MARK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
TAR_ROWS: dict[str, tuple[str, str]] = {
    "../x": ("encode_error", "member name '../x.jpg' leaves the archive"),
    "/etc/y": ("encode_error", "member name '/etc/y.jpg' leaves the archive"),
    "link": ("encode_error", "'link.jpg' is a link or a device"),
    "wide": ("image_error", "2500000000 pixels"),
    "outside": ("image_error", "leaves the image folder"),
    "good": ("ok", ""),
}
"""Key -> status and reason, in the archive's order."""


def png(width: int, height: int, *, pixels: bool = False) -> bytes:
    """A grey PNG of this size: a kilobyte or so for each megabyte of pixels, or none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    if pixels:
        packer = zlib.compressobj(9)
        rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG whose compressed comment unfolds to 100 MiB."""
    good = png(8, 8, pixels=True)
    data = b"Comment\0\0" + zlib.compress(bytes(100 * _MIB), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return good[:33] + chunk + good[33:]


def write_hostile_rows(folder: Path, url: str) -> tuple[Path, Path, dict[str, tuple[str, str]]]:
    """LLaVA rows with images in `images`, secrets beside it; returns both and id -> (status, reason).

    Args:
        folder: where to.
        url: of a server that counts who comes.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    image_file = io.BytesIO()
    sample_image(0).save(image_file, "PNG")
    (folder / "outside").mkdir()
    for place in (images / "good.png", folder / "outside" / "secret.png"):
        place.write_bytes(image_file.getvalue())
    (images / "link.png").symlink_to(folder / "outside" / "secret.png")
    (images / "dir").symlink_to(folder / "outside")
    files = {
        "bomb": png(60_000, 60_000),
        "filled bomb": png(12_000, 12_000, pixels=True),
        "wide": png(50_000, 1_000, pixels=True),
        "strip": png(50_000, 10, pixels=True),
        "wide and high": png(50_000, 50_000),
        "text bomb": text_bomb(),
    }
    for name, data in files.items():
        (images / f"{name}.png").write_bytes(data)
    with (images / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    rows: list[tuple[str, dict[str, Any], str, str]] = [
        ("bomb", {}, "image_error", "3600000000 pixels"),
        ("filled bomb", {}, "image_error", "12000 x 12000 pixels exceeds --max_image_pixels"),
        ("wide", {}, "image_error", "50000 x 1000 pixels has a side over 20000"),
        ("strip", {}, "image_error", "longer than 200 times its width"),
        ("wide and high", {}, "image_error", "2500000000 pixels"),
        ("text bomb", {}, "image_error", "cannot be decoded"),
        ("sparse", {}, "image_error", "1099511627776 bytes, more than"),
        ("upwards", {"image": "../../../../../etc/passwd"}, "image_error", "leaves the image folder"),
        ("sideways", {"image": "../outside/secret.png"}, "image_error", "leaves the image folder"),
        ("absolute", {"image": str(folder / "outside" / "secret.png")}, "image_error", "leaves the image folder"),
        ("link", {}, "image_error", "leaves the image folder"),
        ("linked folder", {"image": "dir/secret.png"}, "image_error", "leaves the image folder"),
        ("url", {"image": f"{url}/cat.png"}, "image_error", "is a URL; nothing is fetched"),
        ("file url", {"image": f"file://{folder}/outside/secret.png"}, "image_error", "is a URL; nothing is fetched"),
        ("book", {"conversations": talk("Read.", "word " * 2 * _MIB)}, "too_long", "characters are more than"),
        ("marks", {"conversations": talk("<image>" * 10_000, "Yes.")}, "encode_error", "10000 <image> marks for 1"),
        ("many", {"image": ["good.png"] * 10_000, "conversations": talk("<image>" * 10_000, "Yes.")}, "too_long",
         "10000 images are more than the"),
        ("nul", {"conversations": talk("<image>\nWh\0at?", "A\0 cat.")}, "ok", ""),
        ("nul in path", {"image": "a\0b.png"}, "image_error", "cannot be read"),
        ("surrogates", {"conversations": talk("<image>\n\ud800?", "A \udfff cat.")}, "ok", "U+FFFD in: turn 0, turn 1"),
        ("good", {}, "ok", ""),
    ]  # fmt: skip
    own = {*files, "link", "sparse"}
    lines = [
        {"id": name, "image": f"{name if name in own else 'good'}.png", "conversations": ONE_MARK} | more
        for name, more, _, _ in rows
    ]
    lines[[row[0] for row in rows].index("book")].pop("image")
    data = folder / "hostile.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return data, images, {name: (status, reason) for name, _, status, reason in rows}


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write_line_bomb(path: Path, gigabytes: int) -> Path:
    """A few hundred kilobytes of `.jsonl.zst` that are one endless line, between two good ones."""
    good = json.dumps({"id": "good", "conversations": talk("Hello?", "Hi.")}).encode() + b"\n"
    block = zstandard.compress(b"x" * 64 * _MIB)
    parts = [zstandard.compress(good), *[block] * (16 * gigabytes), zstandard.compress(b"\n" + good)]
    path.write_bytes(b"".join(parts))
    return path


def write_hostile_tar(path: Path, outside: Path) -> Path:
    """An archive with the rows of TAR_ROWS."""
    image_file = io.BytesIO()
    sample_image(1).save(image_file, "JPEG")
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            info.linkname = str(outside) if kind == tarfile.SYMTYPE else ""
            archive.addfile(info, io.BytesIO(data))

        for key in TAR_ROWS:
            image = png(50_000, 50_000) if key == "wide" else image_file.getvalue()
            if key == "outside":
                value: Mapping[str, Any] = {"image": f"../{outside.parent.name}/{outside.name}", "caption": "A cat."}
                add(f"{key}.json", json.dumps(value).encode())
                continue
            is_link = key == "link"
            add(f"{key}.jpg", b"" if is_link else image, tarfile.SYMTYPE if is_link else tarfile.REGTYPE)
            add(f"{key}.txt", b"A cat.")
    return path


def write_member_bomb(path: Path, gigabytes: int) -> Path:
    """A small `.tar.gz` with an image of so many GiB of zeros, and a good row after it."""
    info = tarfile.TarInfo("bomb.jpg")
    info.size = gigabytes * 2**30
    image_file = io.BytesIO()
    sample_image(1).save(image_file, "JPEG")
    rest = io.BytesIO()
    with tarfile.open(fileobj=rest, mode="w") as archive:
        for name, data in (("bomb.txt", b"t"), ("good.jpg", image_file.getvalue()), ("good.txt", b"A cat.")):
            one = tarfile.TarInfo(name)
            one.size = len(data)
            archive.addfile(one, io.BytesIO(data))
    block = gzip.compress(bytes(64 * _MIB))
    path.write_bytes(
        gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + block * (16 * gigabytes) + gzip.compress(rest.getvalue())
    )
    return path
