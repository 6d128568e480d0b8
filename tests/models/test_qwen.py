import os
import subprocess
import sys
from pathlib import Path

import pytest

from families.builders import qwen
from families.end_to_end import check_annotated, shared_flags, write_data
from families.real import RealFamily
from fault_job import PATIENCE_S

BIN = Path(sys.executable).parent


class TestQwen25VL(RealFamily):
    FAMILY = qwen.QWEN2_5_VL


@pytest.mark.full
class TestQwen2VL(RealFamily):
    FAMILY = qwen.QWEN2_VL


@pytest.mark.full
class TestQwen3VL(RealFamily):
    FAMILY = qwen.QWEN3_VL


@pytest.mark.full
class TestQwen35(RealFamily):
    FAMILY = qwen.QWEN3_5


@pytest.mark.full
@pytest.mark.slow
def test_both_programs_and_the_workers_of_ray_find_torchvision(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "annotated"
    qwen.build_qwen2_5_vl(model)
    data, statuses = write_data(tmp_path / "data", qwen.QWEN2_5_VL)
    shared = shared_flags(qwen.QWEN2_5_VL, model, data)

    def run(program: str, *flags: object) -> None:
        done = subprocess.run(
            [str(BIN / program), *map(str, (*shared, *flags))],
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    run("cal-precompute", "--data_path", data, "--output_dir", out, "--gpus_per_worker", 0)
    check_annotated(out, model, statuses)
    run(
        "cal-train", "--data_path", out, "--output_dir", tmp_path / "trained", "--cache_dir", tmp_path / "cache",
        "--max_steps", 1, "--use_cpu", "--disable_tqdm", "true", "--report_to", "none",
    )  # fmt: skip
    assert (tmp_path / "trained" / "model.safetensors").is_file()
