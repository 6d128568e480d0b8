"""Mini-Gemini and HD with towers of the published sizes: 576 and 2880 tokens, one sample, under 8 GB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mini_gemini_data import build_mini_gemini

PROGRAM = Path(__file__).with_name("real_geometry.py")
TESTS = Path(__file__).parents[3]


@pytest.mark.full
@pytest.mark.parametrize(("size", "tokens"), [("base", 576), ("hd", 2880)])
@pytest.mark.parametrize("kind", ["llama"])
def test_both_passes_at_real_geometry(size: str, tokens: int, kind: str, tmp_path: Path) -> None:
    tiny = build_mini_gemini(tmp_path / "tiny", kind)
    code = f"import sys; sys.path[:0] = {sys.path!r}; sys.argv = {[str(PROGRAM), str(tiny), size]!r}; "
    code += f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, cwd=TESTS)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(size, report)  # noqa: T201
    assert report["tokens"] == tokens
    assert report["head"] < 1e-4
    assert report["drop_mask"] < 1e-3
    assert report["delta"] > 0.01
    assert report["peak_gb"] < 8
