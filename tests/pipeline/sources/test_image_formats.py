"""Which files are opened as images, and what is said of the others."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cal_pipeline.sources.image_formats import FORMATS
from cal_pipeline.sources.images import decode_image
from cal_schemas.errors import ImageError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n1 0 0 setrgbcolor 0 0 20 20 rectfill\n"


def test_a_postscript_file_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\necho run >> {tmp_path}/was_run\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    dos = b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + len(EPS).to_bytes(4, "little") + bytes(20) + EPS
    for data in (EPS, dos):
        with pytest.raises(ImageError, match=r"it is PostScript \(EPS\); only AVIF, .* are opened: convert"):
            decode_image(data)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_listed_format_is_decoded(file_format: str) -> None:
    target = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(target, file_format)
    pixel = decode_image(target.getvalue()).getpixel((8, 8))
    assert isinstance(pixel, tuple)
    assert all(abs(there - wanted) <= 12 for there, wanted in zip(pixel, (200, 100, 50), strict=True))


@pytest.mark.parametrize("file_format", ["DDS", "EPS", "ICNS", "MSP", "PCX", "SGI", "SPIDER", "TGA", "XBM"])
def test_a_format_that_is_not_listed_is_refused_with_the_way_out(file_format: str) -> None:
    target = io.BytesIO()
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(file_format, "RGB")
    Image.new(mode, (16, 16)).save(target, file_format)
    with pytest.raises(ImageError, match=r"only AVIF, .*, WEBP are opened: convert or replace it"):
        decode_image(target.getvalue())


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!DOCTYPE html><title>404</title>", "a page of HTML"),
        (b"%PDF-1.7", "a PDF document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"8BPS\0\1", "PSD"),
    ],
)
def test_a_file_that_is_no_image_of_ours_is_called_by_its_name(data: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=f"it is {name}"):
        decode_image(data)


def test_what_only_begins_like_an_image_is_said_to_be_damaged() -> None:
    with pytest.raises(ImageError, match="it begins like PNG, and is damaged or of a kind that pillow does not read"):
        decode_image(b"\x89PNG\r\n\x1a\n")


def foreign(_file: object, _name: object) -> Any:
    """A decoder of another package: it takes any bytes for a white image."""
    return Image.new("RGB", (1, 1), "white")


@pytest.fixture(params=["FOREIGN", "BMP"])
def _registered(request: pytest.FixtureRequest) -> Iterator[None]:
    Image.init()
    before = dict(Image.OPEN), list(Image.ID)
    Image.register_open(request.param, foreign)
    yield
    Image.OPEN.clear()
    Image.OPEN.update(before[0])
    Image.ID[:] = before[1]


@pytest.mark.usefixtures("_registered")
def test_a_decoder_that_another_package_registers_is_not_used_even_under_a_listed_name() -> None:
    assert Image.open(io.BytesIO(b"whatever")).size == (1, 1)
    with pytest.raises(ImageError, match="only AVIF"):
        decode_image(b"whatever")
