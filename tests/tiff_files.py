"""TIFF files byte by byte, of kinds that Pillow reads and does not write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

SHORT, LONG = "H", "I"


def tiff(
    data: bytes,
    *,
    width: int,
    height: int = 1,
    bits: int,
    photometric: int | None,
    order: str = "<",
    samples: int = 1,
    strips: int = 1,
    more: dict[int, Sequence[int]] | None = None,
) -> bytes:
    """An uncompressed TIFF of strips of equal size (one a sample where `more` says that planes are separate)."""
    more = more or {}
    strips = samples if more.get(284) == [2] else strips
    tags: dict[int, tuple[str, Sequence[int]]] = {
        256: (SHORT, [width]), 257: (SHORT, [height]), 258: (SHORT, [bits] * samples), 259: (SHORT, [1]),
        273: (LONG, [0] * strips), 277: (SHORT, [samples]), 278: (SHORT, [height if samples > 1 else height // strips]),
        279: (LONG, [len(data) // strips] * strips), **{tag: (SHORT, values) for tag, values in more.items()},
    }  # fmt: skip
    if photometric is not None:
        tags[262] = (SHORT, [photometric])
    long_values_at = 8 + 2 + 12 * len(tags) + 4
    data_at = long_values_at + sum(
        size for kind, values in tags.values() if (size := struct.calcsize(kind) * len(values)) > 4
    )
    tags[273] = (LONG, [data_at + strip * (len(data) // strips) for strip in range(strips)])
    entries = long_values = b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            packed, long_values = struct.pack(f"{order}I", long_values_at + len(long_values)), long_values + packed
        entries += struct.pack(f"{order}HHI", tag, 3 if kind == SHORT else 4, len(values)) + packed.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + entries + bytes(4) + long_values + data


def packed(values: Sequence[int], bits: int) -> bytes:
    """One row of samples, the first in the highest bits, filled up to whole bytes."""
    row = "".join(f"{value:0{bits}b}" for value in values)
    row += "0" * (-len(row) % 8)
    return bytes(int(row[at : at + 8], 2) for at in range(0, len(row), 8))
