"""A model that is in no table, with code of its own that ignores position ids: refused by name, with the way out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from cal_pipeline.models.loading import load_reference
from cal_trainer import cli
from families.processors import BUILDERS
from tiny_data import write_parquet

ODD = """
from transformers import LlavaForConditionalGeneration


class OddLlava(LlavaForConditionalGeneration):
    def forward(self, position_ids=None, **inputs):
        return super().forward(**inputs)
"""
REFUSAL = ("without-image logits differ by", "use --contrast mask with this model (OddLlava)")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "odd"
    BUILDERS["llava"](directory)
    (directory / "modeling_odd.py").write_text(ODD)
    # Under the names that the parameters have in memory: the library renames those of its own classes only.
    weights = load_reference(directory, dtype="float32").state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, directory / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "modeling_odd.OddLlava"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data") / "a.parquet", count=4).parent


def train(odd: Path, data: Path, output: Path, *flags: str) -> int:
    argv = [
        "--model_name_or_path", str(odd), "--trust_remote_code", "true", "--source_path", str(data), "--output_dir",
        str(output), "--cache_dir", str(output / "cache"), "--delta_source", "online", "--dtype", "float32",
        "--use_cpu", "--max_steps", "1", "--per_device_train_batch_size", "2", "--disable_tqdm", "true", *flags,
    ]  # fmt: skip
    return cli.run(argv)


@pytest.mark.full
def test_online_training_refuses_it_before_the_first_step(
    odd: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(odd, data, tmp_path) == 2
    printed = capsys.readouterr().err
    assert all(words in printed for words in REFUSAL), printed
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.full
def test_with_contrast_mask_it_trains(odd: Path, data: Path, tmp_path: Path) -> None:
    assert train(odd, data, tmp_path, "--contrast", "mask") == 0


@pytest.mark.full
@pytest.mark.slow
def test_cal_precompute_refuses_it_and_measures_with_contrast_mask(odd: Path, data: Path, tmp_path: Path) -> None:
    def measure(*flags: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).parent / "cal-precompute"
        argv = [
            program, "--model_name_or_path", odd, "--trust_remote_code", "true", "--data_path", data, "--output_dir",
            tmp_path / "out", "--dtype", "float32", "--gpus_per_worker", 0, "--max_tries", 1, *flags,
        ]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        return subprocess.run(
            list(map(str, argv)), env=environment, capture_output=True, text=True, timeout=900, check=False
        )

    refused = measure()
    assert refused.returncode == 2
    assert all(words in " ".join(refused.stderr.split()) for words in REFUSAL)
    assert not list((tmp_path / "out").glob("*.parquet"))
    done = measure("--contrast", "mask")
    assert done.returncode == 0, done.stderr[-2000:]
