"""The examples at the end of each page of help, one after the other in one folder: they do what they say."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cal_pipeline.inspect.cli import SUBCOMMANDS
from conftest import Family
from help_pages import PROGRAMS, examples_of, page_of
from tiny_data import write_llava_json

pytestmark = [pytest.mark.full, pytest.mark.slow]
IN_ORDER = ["cal-precompute", "cal-train", *(f"cal-inspect {name}" for name in SUBCOMMANDS)]
SHORT = shlex.split("--max_steps 2 --save_steps 1 --per_device_train_batch_size 2 --disable_tqdm true --use_cpu")
MEASURED = shlex.split("--gpus_per_worker 0 --extra_columns logprobs,kl,entropy")
"""What any score is looked at with, too."""
NEEDS_OTHERS = ("cal-inspect push",)
"""What would publish; its own tests do."""


@pytest.fixture(scope="module")
def world(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the examples name: data, images, and a model where its hub id is a path."""
    folder = tmp_path_factory.mktemp("world")
    write_llava_json(folder, 40)
    for name in ("llava-hf/llava-1.5-7b-hf", "before", "after"):
        shutil.copytree(llava.directory, folder / name)
    rows = json.loads((folder / "data.json").read_text())
    (folder / "ids.txt").write_text(rows[0]["id"])
    (folder / "train.yaml").write_text(
        "data_path: annotated/\nmodel_name_or_path: llava-hf/llava-1.5-7b-hf\nbf16: true\nmax_steps: 3\n"
        "per_device_train_batch_size: 2\nsave_steps: 1\nuse_cpu: true\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_all_of_them_run(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in IN_ORDER:
        if name in NEEDS_OTHERS:
            continue
        if name == "cal-inspect compare":
            for annotated in ("annotated_7b", "annotated_13b"):
                shutil.copytree("annotated", annotated)
        if name == "cal-inspect agreement":
            mark(world / "sheet/sheet.csv")
        for example in examples_of(page_of(name, "--help")):
            program, *given = shlex.split(example)
            given += SHORT if program == "cal-train" and "--config" not in given else []
            given += MEASURED if program == "cal-precompute" and "--status" not in given else []
            code = PROGRAMS[program](given)
            said = capfd.readouterr()
            assert code == 0, f"{example}: {said.err}"
            assert said.out + said.err


def mark(sheet: Path) -> None:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["contradictory"] = ("yes", "no")[number % 2]
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
