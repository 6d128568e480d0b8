"""The demo's way with a tiny Qwen2.5-VL, as its page tells to run it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cal_pipeline.inspect import load_annotated

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "examples" / "shapes" / "qwen.py"

pytestmark = pytest.mark.full


def test_the_example_tells_words_apart_in_images_of_several_sizes(tmp_path: Path) -> None:
    output = tmp_path / "demo-qwen"
    done = subprocess.run(
        [sys.executable, PROGRAM, "--output_dir", output], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "FAILED" not in done.stderr

    commands, compared = re.findall(
        r"^```(?:bash)?\n(.*?)```$",
        (ROOT / "docs" / "demo.md").read_text().partition("Resolution belongs")[2],
        re.M | re.S,
    )
    for command in commands.replace("\\\n", "").splitlines():
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [Path(sys.executable).parent / program, *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    named = compared.partition("measured differently:\n")[2]
    assert done.stdout.partition("measured differently:\n")[2].strip() == named.strip()

    columns = ["num_tokens", "label_ids", "sample_key"]
    frame = load_annotated(output / "annotated", columns=["status", *columns])
    assert (frame["status"] == "ok").all()
    small = load_annotated(output / "one-token", columns=columns)
    both = frame.merge(small, on="sample_key", suffixes=("", "_small"))
    fewer = both["num_tokens"] - both["num_tokens_small"]
    # 2 x 2 to 3 x 3 tokens of 28 x 28 pixels, and one where max_pixels lets no more be.
    assert set(fewer) == {2 * 2 - 1, 2 * 3 - 1, 3 * 3 - 1}
    assert both["label_ids"].map(list).equals(both["label_ids_small"].map(list))
