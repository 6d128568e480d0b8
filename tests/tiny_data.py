"""LLaVA data on disk with every kind of bad row, for tests that run the real thing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tiny_models import sample_image

BAD_ROWS = {
    5: ("image_error", "not a file"),
    6: ("image_error", "leaves the image folder"),
    8: ("no_supervised_tokens", "no assistant turn"),
    9: ("encode_error", "2 <image> marks for 1 images"),
    11: ("image_error", "truncated"),
    13: ("image_error", "--max_image_pixels"),
    14: ("encode_error", "role 'robot'"),
    15: ("image_error", "is a URL"),
}
MAX_IMAGE_PIXELS = 90 * 90
"""With this limit row 13 is too large."""


def llava_rows(folder: Path, count: int = 40) -> list[dict[str, Any]]:
    """Rows with images in `folder`; those of BAD_ROWS are bad, every tenth is text-only, ids repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number}.png"
        sample_image(number, (40 + number % 30, 40 + number % 17)).save(folder / name)
        turns = [
            {"from": "human", "value": "<image>\nWhat is in the image?"},
            {"from": "gpt", "value": "A red cat sits on the table. " * (1 + number % 4)},
        ]
        if number % 7 == 0:
            turns += [{"from": "human", "value": "And where?"}, {"from": "gpt", "value": "On the left."}]
        row: dict[str, Any] = {"id": f"id-{number // 2}", "image": name, "conversations": turns}
        if number % 10 == 3:
            row = {
                "id": number,
                "conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}],
            }
        rows.append(row)
    if count > max(BAD_ROWS):
        _spoil(rows, folder)
    return rows


def _spoil(rows: list[dict[str, Any]], folder: Path) -> None:
    rows[5]["image"] = "missing.png"
    rows[6]["image"] = "../../../etc/passwd"
    rows[8]["conversations"] = rows[8]["conversations"][:1]
    rows[9]["conversations"][0]["value"] = "<image><image>\nWhat?"
    (folder / "11.png").write_bytes((folder / "0.png").read_bytes()[:100])
    sample_image(13, (100, 100)).save(folder / "13.png")
    rows[13] = {**rows[12], "id": "large", "image": "13.png"}
    rows[14]["conversations"][0]["from"] = "robot"
    rows[15]["image"] = "https://example.org/cat.png"


def write_llava_json(folder: Path, count: int = 40) -> tuple[Path, Path]:
    """Writes `data.json` and `images/`; returns both paths."""
    rows = llava_rows(folder / "images", count)
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json", folder / "images"


def write_parquet(path: Path, count: int = 12, seed: int = 0) -> Path:
    """A Hugging Face style shard with embedded images and a column of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        file = io.BytesIO()
        sample_image(seed + number, (48, 40)).save(file, "PNG")
        rows.append(
            {
                "id": f"{path.stem}-{number}",
                "images": [{"bytes": file.getvalue(), "path": f"{number}.png"}],
                "messages": [
                    {"role": "user", "content": "<image>\nWhat?"},
                    {"role": "assistant", "content": "A cat on the table." + " Yes." * (number % 5)},
                ],
                "score": number / 2,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
