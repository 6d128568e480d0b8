"""Every snippet of docs/running.md: flags exist and parse, YAML loads, scripts are bash; two of them are run."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cal_pipeline.arguments import parse_config
from cal_pipeline.runtime.cluster import RunOutcome
from cal_pipeline.runtime.config import PrecomputeConfig, maintenance_config
from cal_trainer.config import TrainConfig
from cal_trainer.training_arguments import CalTrainingArguments
from conftest import Family
from tiny_data import MAX_IMAGE_PIXELS, write_llava_json

PAGE = (Path(__file__).parents[2] / "docs" / "running.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
SCRIPTS = [text for language, text in SNIPPETS if language == "bash"]
MANIFESTS = [text for language, text in SNIPPETS if language == "yaml" and "apiVersion" in text]
RAY_FLAGS = {"--head", "--port", "--address", "--num-gpus", "--num-cpus", "--block", "--no-wait"}


def commands(script: str) -> list[list[str]]:
    """Arguments of every `cal-precompute` of a script."""
    joined = script.replace("\\\n", " ")
    parsed = []
    for line in joined.splitlines():
        if match := re.search(r"(?<![\w=-])cal-precompute (--.*)", line):
            parsed.append(shlex.split(match[1].removesuffix(" &"), comments=True))
    return parsed


def test_there_is_a_snippet_for_every_way_to_run() -> None:
    assert len(SCRIPTS) >= 8
    assert len(MANIFESTS) == 1
    for heading in ("One GPU", "Eight GPUs", "A Ray cluster", "ray job submit", "Slurm", "KubeRay", "Spot", "Sizing"):
        assert re.search(rf"^## .*{heading}", PAGE, re.MULTILINE), heading


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_every_command_of_a_script_parses(number: int) -> None:
    script = SCRIPTS[number]
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    parsed = commands(script)
    assert parsed
    for arguments in parsed:
        kind = maintenance_config() if {"--status", "--verify", "--clean"} & set(arguments) else PrecomputeConfig
        parse_config(kind, arguments, program="cal-precompute", description="")
    for line in script.replace("\\\n", " ").splitlines():
        if match := re.search(r"\bray (start|job submit) (.*?)(?: -- |#|$)", line):
            assert set(re.findall(r"(?<!\S)--[\w-]+", match[2])) <= RAY_FLAGS, line


def test_the_manifest_loads_and_its_command_parses() -> None:
    job = yaml.safe_load(MANIFESTS[0])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    (arguments,) = commands(job["spec"]["entrypoint"])
    config = parse_config(PrecomputeConfig, arguments, program="cal-precompute", description="")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.num_workers == group["replicas"] * int(limits["nvidia.com/gpu"])
    assert config.cpus_per_worker <= int(limits["cpu"])


def test_every_flag_that_the_text_names_exists() -> None:
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    kinds = (PrecomputeConfig, TrainConfig, CalTrainingArguments)
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    others = {
        "--help", "--help-all", "--config", "--requeue", "--no-deps", "--generate", "--metrics-export-port",
        "--repo-type", "--local-dir",
    }  # fmt: skip
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - others
    assert {flag for flag in named if flag.removeprefix("--") not in known} == set()
    assert "devices" in {field.name for field in dataclasses.fields(RunOutcome)}


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1], ids=["one GPU", "subset"])
def test_a_command_of_the_page_runs_on_a_tiny_model(number: int, tmp_path: Path, llava: Family) -> None:
    data, _ = write_llava_json(tmp_path, 12)
    data.rename(tmp_path / "llava_v1_5_mix665k.json")
    (arguments,) = commands(SCRIPTS[number])
    arguments[arguments.index("--model_name_or_path") + 1] = str(llava.directory)
    limits = ["--max_image_pixels", str(MAX_IMAGE_PIXELS), "--gpus_per_worker", "0"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "cal-precompute"), *arguments, *limits],
        cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 shard with 12 rows" in done.stdout
