"""Limits which files are opened as images at all, and says what the others are."""

from __future__ import annotations

import re

from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's decoders for these start no program and read no other file. EPS runs Ghostscript, others are handed to
whatever another package has registered, and some (TGA, PCD, XBM) take nearly any bytes for an image."""
_SIGNATURES = (
    ("PostScript (EPS)", rb"\s*%!PS|\xc5\xd0\xd3\xc6"),
    ("a PDF document", rb"\s*%PDF"),
    ("SVG", rb"\s*<(.{0,1000}<)?svg[\s>/]"),
    ("a page of HTML", rb"\s*<(!doctype\s+html|(.{0,1000}<)?html[\s>])"),
    ("a pointer of Git LFS (`git lfs pull` fetches the file itself)", rb"version https://git-lfs"),
    ("HEIC", rb"....ftyp(hei|hev|mif|msf)"),
    ("a video (MP4, MOV)", rb"....ftyp(?!avi)|....moov"),
    ("a video (WebM, Matroska)", rb"\x1aE\xdf\xa3"),
    ("JPEG XL", rb"\xff\x0a|....JXL "),
    ("PSD (Photoshop)", rb"8BPS"),
    ("WMF or EMF", rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF"),
    ("DICOM", rb".{128}DICM"),
    ("FITS", rb"SIMPLE  ="),
    ("HDF5", rb"\x89HDF"),
    ("a NumPy array", rb"\x93NUMPY"),
    ("a ZIP archive", rb"PK\x03\x04"),
    ("a gzip stream", rb"\x1f\x8b"),
)


def formats_to_open() -> list[str]:
    """Those of `FORMATS` that Pillow itself decodes: any package may register a decoder under a name that is taken."""
    Image.init()
    return [name for name in FORMATS if Image.OPEN[name][0].__module__.startswith("PIL.")]


def describe_unopened(data: bytes) -> str:
    """Says what a file is that no decoder of ours took, as far as its first bytes tell, and the way out."""
    way_out = f"only {', '.join(FORMATS)} are opened: convert or replace it"
    for name, signature in _SIGNATURES:
        if re.match(signature, data[:2000], re.DOTALL | re.IGNORECASE):
            return f"it is {name}; {way_out}"
    for name in FORMATS:
        if (accepts := Image.OPEN[name][1]) and accepts(data[:16]) is True:
            return f"it begins like {name}, and is damaged or of a kind that pillow does not read; {way_out}"
    return f"it is in no format that is opened; {way_out}"
