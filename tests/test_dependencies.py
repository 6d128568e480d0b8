"""What `pip install .` brings is what measuring imports; what other programs need on top is in an extra, and named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cal_trainer import cli
from conftest import Family
from fault_job import PATIENCE_S
from tiny_data import write_llava_json
from torchvision_for_tests import sitecustomize

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
IN_EXTRAS = ("datasets", "pandas", "duckdb", "matplotlib", "peft", "boto3", "bitsandbytes", "sentencepiece")


@pytest.mark.full
@pytest.mark.slow
def test_measuring_imports_nothing_that_only_an_extra_installs(llava: Family, tmp_path: Path) -> None:
    required = {line.partition(">")[0].partition("[")[0] for line in PROJECT["dependencies"]}
    assert required.isdisjoint(IN_EXTRAS)
    (tmp_path / "absent").mkdir()
    absent = f"import sys; sys.modules.update(dict.fromkeys({IN_EXTRAS}))"
    (tmp_path / "absent" / "sitecustomize.py").write_text(absent)
    ours = {str(sitecustomize.FOLDER), str(sitecustomize.HERE)}
    path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder not in ours]
    data, images = write_llava_json(tmp_path / "data", count=4)
    done = subprocess.run(
        [
            Path(sys.executable).parent / "cal-precompute", "--model_name_or_path", llava.directory,
            "--data_path", data, "--image_folder", images, "--output_dir", tmp_path / "annotated",
            "--gpus_per_worker", "0",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "absent"), *path])},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "annotated").glob("*.parquet"))


def test_training_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    code = cli.run(["--model_name_or_path", "m", "--data_path", "annotated", "--output_dir", "out"])
    assert code == 2
    assert capsys.readouterr().err.endswith("cal-train needs datasets: pip install 'cal-vlm[train]'\n")


def test_the_page_of_installing_names_every_extra() -> None:
    page = (Path(__file__).parents[1] / "docs" / "installing.md").read_text()
    named = {name for row in re.findall(r"^\| (`.+?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named >= set(PROJECT["optional-dependencies"])
