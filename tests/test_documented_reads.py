"""Documented snippets read the columns that they use: whole shards are images, mostly."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "shapes" / "demo.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_documented_line_reads_whole_shards_for_a_few_columns(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    calls = re.findall(r"read_(?:parquet|table)\((?:[^()]|\([^()]*\))*\)", text)
    assert [call for call in calls if "columns" not in call] == []
