"""Most tests run with torchvision importable; these run without, as the product does where it is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from families.builders.qwen import QWEN2_5_VL
from torchvision_for_tests import sitecustomize

HERE = Path(__file__).parent


@pytest.mark.full
def test_what_needs_no_torchvision_works_without_it_and_the_rest_says_what_to_install(tmp_path: Path) -> None:
    QWEN2_5_VL.build(tmp_path / "qwen")
    ours = {str(sitecustomize.FOLDER), str(sitecustomize.HERE)}
    path = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder not in ours]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), sitecustomize.WITHOUT: "yes",
                   "QWEN": str(tmp_path / "qwen")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "without_torchvision" / "handful.py"],
        cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout
