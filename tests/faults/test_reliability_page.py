import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.fault


def test_every_test_that_the_page_names_exists_and_every_fault_test_is_named() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = {name.rstrip("…_") for name in re.findall(r"`((?:[a-z0-9]+_){3,}[a-z0-9…]*)`", page)}
    here = set()
    everywhere = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tests = re.findall(r"^def test_(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        everywhere.update(tests)
        if path.parent == Path(__file__).parent and path != Path(__file__):
            here.update(tests)
    flags = {name for name in named if f"--{name}" in page}
    missing = {name for name in named - flags if not any(test.startswith(name) for test in everywhere)}
    assert not missing
    unnamed = {test for test in here if not any(test.startswith(name) for name in named)}
    assert not unnamed
