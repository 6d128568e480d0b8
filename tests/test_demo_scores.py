"""`make demo-scores`: one measurement serves every preset, and the table says what its students learned."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cal_pipeline.inspect import load_annotated

sys.path.append(str(Path(__file__).parent.parent / "examples" / "shapes"))
import demo
import reference
import scores
import world
from accuracy import word_accuracy

pytestmark = pytest.mark.full
ROWS, STEPS = 96, 3  # one epoch of the demo's batches of 32


def run(monkeypatch: pytest.MonkeyPatch, demo_dir: Path, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["scores.py", "--demo_dir", str(demo_dir), *map(str, flags)])
    return scores.main()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What demo.py leaves that scores.py reads, with a reference of few steps."""
    path = tmp_path_factory.mktemp("demo")
    clean = world.generate(200, seed=1000, wrong_share=0.0, prefix="train")
    world.write_parquet_shards(world.generate(ROWS, seed=0, wrong_share=0.3), path / "world" / "shards", num_shards=2)
    reference.build_reference(path / "random_start", [*(s.clean_caption for s in clean), *world.QUESTIONS], seed=0)
    reference.train_reference(path / "random_start", path / "reference", clean, seed=0, num_steps=20)
    return path


def test_the_table_says_what_each_student_weighed_and_learned(
    left: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, left, "--train_steps", STEPS, "--weights", "vppo") == 0
    facts: dict[str, Any] = json.loads((left / "scores.json").read_text())
    uniform, vppo = facts["runs"]
    assert (uniform["name"], vppo["name"]) == ("uniform", "vppo")
    assert (uniform["mean_weight"], uniform["share_of_zeros"]) == (1.0, 0.0)
    num_tokens = load_annotated(left / "scores" / "annotated", columns=["label_ids"])["label_ids"].map(len)
    chosen = sum(math.ceil(0.4 * num) for num in num_tokens) / num_tokens.sum()
    assert vppo["mean_weight"] == pytest.approx(chosen)
    assert vppo["share_of_zeros"] == pytest.approx(1.0 - chosen)

    held_out = world.generate(demo.HELD_OUT_SAMPLES, seed=demo.HELD_OUT_SEED, wrong_share=0.0, prefix="held-out")
    assert vppo["accuracy"] == word_accuracy(left / "scores" / "vppo", held_out)
    assert vppo["loss"] != uniform["loss"]

    page = (left / "scores.md").read_text()
    assert page in capsys.readouterr().out
    gain = vppo["accuracy"] - uniform["accuracy"]
    cells = [f"{vppo['loss']:.3f}", f"{vppo['accuracy']:.3f}", f"{gain:+.3f}", f"{chosen:.3f}", f"{1 - chosen:.1%}"]
    (row,) = re.findall(r"^\| `vppo` +\|(.*)\|$", page, re.M)
    assert [cell.strip() for cell in row.split("|")][:-1] == cells

    # Of the same measurement, and of a student that begins as no number.
    measured = left / "measured"
    shutil.copytree(left / "scores" / "annotated", measured)
    monkeypatch.setattr(scores, "precompute", lambda _, output, *flags: shutil.copytree(measured, output))
    path = left / "random_start" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: torch.full_like(tensor, math.nan) for name, tensor in tensors.items()}, path, {"format": "pt"})
    assert run(monkeypatch, left, "--train_steps", STEPS, "--weights", "vppo", "--jobs", 1) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"FAILED: uniform: cal-train ended with 1: cal-train: .*nan", line)


def test_without_the_demo_it_says_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path)
    assert ended.value.code == 2
    assert re.search(
        rf"{tmp_path}/world/shards is not there; demo.py makes it: python \S+demo.py --output_dir {tmp_path}$",
        capsys.readouterr().err,
    )
