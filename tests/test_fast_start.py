"""Programs answer --help, a typo and a wrong path before they import what takes seconds: imports are counted."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import HfArgumentParser, TrainingArguments

from cal_pipeline import arguments
from cal_pipeline.arguments import training_argument_types
from cal_trainer import cli

HEAVY = {"torch", "transformers", "ray", "pandas", "datasets", "matplotlib", "scipy", "prometheus_client"}
AT_EXIT = """
import atexit, importlib, json, sys
atexit.register(lambda: print("\\n" + json.dumps([name for name in sys.modules if "." not in name])))
module, name = sys.argv[1].split(":")
sys.argv[1:2] = []
sys.exit(getattr(importlib.import_module(module), name)())
"""
PROGRAMS = {
    "cal-precompute": "cal_pipeline.cli:main",
    "cal-train": "cal_trainer.cli:main",
    "cal-inspect": "cal_pipeline.inspect.cli:main",
    "cal-convert-mgm": "cal_pipeline.models.mini_gemini.cli:main",
}
ANSWERS = (
    ("cal-precompute --help", 0, "--rows_per_shard"),
    ("cal-precompute --version", 0, "cal-vlm "),
    ("cal-precompute --output_dir out --verify", 2, "out: no annotated shards"),
    ("cal-precompute --verify", 2, "required: --output_dir"),
    ("cal-precompute --status out", 2, "out: no run of cal-precompute has written here"),
    ("cal-precompute --status begun", 0, "begun: 0 shards are there, by no plan, 0 failed"),
    ("cal-precompute --status begun --json", 0, '"shards_done": 0'),
    ("cal-precompute --status begun --verify", 2, "give one of them"),
    ("cal-precompute --output_dir out --clean --json", 2, "--json says how --status prints"),
    ("cal-precompute MEASURE --json", 2, "--json says how --status prints"),
    ("cal-precompute MEASURE --metrics_address 9464", 2, "--metrics_address 9464: expected host:port"),
    ("cal-precompute MEASURE --metrics_address a:99999", 2, "--metrics_address a:99999: expected host:port"),
    ("cal-precompute MEASURE nope.json --log_format json", 2, '"message": "--data_path nope.json: no file there'),
    ("cal-precompute MEASURE --contrats drop", 2, "unknown flag --contrats; did you mean --contrast?"),
    ("cal-precompute MEASURE --dtype float12", 2, "invalid choice: 'float12'"),
    ("cal-precompute MEASURE nope.json", 2, "--data_path nope.json: no file there"),
    ("cal-precompute MEASURE --image_folder nope", 2, "--image_folder nope: no such directory"),
    ("cal-precompute MEASURE --model_name_or_path no/such", 2, "no/such: no such directory"),
    ("cal-precompute MEASURE --output_dir data.json", 2, "data.json cannot be written"),
    ("cal-precompute MEASURE --config absent.yaml", 2, "--config absent.yaml: No such file"),
    ("cal-train --help", 0, "--delta_source"),
    ("cal-train --version", 0, "cal-vlm "),
    ("cal-train TRAIN --delta_sauce cached", 2, "unknown flag --delta_sauce; did you mean --delta_source?"),
    ("cal-train TRAIN --learning_rat 1", 2, "unknown flag --learning_rat; did you mean --learning_rate?"),
    ("cal-train TRAIN --window 2 --pool spam", 2, "invalid choice: 'spam'"),
    ("cal-train TRAIN nope", 2, "nope: no annotated shards"),
    ("cal-train TRAIN --eval_path nope", 2, "--eval_path nope: no file there"),
    ("cal-train TRAIN --image_folder nope", 2, "--image_folder nope: no such directory"),
    ("cal-train TRAIN --eval_path data.json --eval_image_folder no", 2, "--eval_image_folder no: no such directory"),
    ("cal-train TRAIN --source_path nope", 2, "--source_path nope: no file there"),
    ("cal-train TRAIN --save_steps often", 2, "--save_steps/--save-steps: invalid float value: 'often'"),
    ("cal-train TRAIN --model_name_or_path no/such", 2, "no/such: no such directory"),
    ("cal-inspect --help", 0, "SUBCOMMAND"),
    ("cal-inspect --version", 0, "cal-vlm "),
    ("cal-inspect sumary", 2, "sumary"),
    ("cal-convert-mgm --help", 0, "--aux_vision"),
    ("cal-convert-mgm --version", 0, "cal-vlm "),
    ("cal-convert-mgm model --outptu x", 2, "required: --output"),
)
REPORT = {
    "run_id": "1",
    "started": "2026-01-01T12:00:00+0000",
    "failed": {},
    "statuses": {},
    "statuses_before": {},
    "aborted": None,
}
SHORT = {
    "MEASURE": "--output_dir out --model_name_or_path model --data_path data.json",
    "TRAIN": "--output_dir out --model_name_or_path model --max_steps -1 --bf16 --data_path annotated",
}


@pytest.mark.parametrize(("line", "code", "answer"), ANSWERS, ids=[line for line, *_ in ANSWERS])
def test_an_answer_imports_nothing_heavy(line: str, code: int, answer: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "annotated").mkdir()
    pq.write_table(pa.table({}).replace_schema_metadata({"cal.format_version": "0"}), tmp_path / "annotated/a.parquet")
    (tmp_path / "begun" / ".cal" / "reports").mkdir(parents=True)
    (tmp_path / "begun" / ".cal" / "reports" / "run-1.json").write_text(json.dumps(REPORT))
    for short, flags in SHORT.items():
        line = line.replace(short, flags)
    program, *argv = line.split()
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, PROGRAMS[program], *argv], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    *_, modules = done.stdout.splitlines()
    assert (done.returncode, answer in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    assert HEAVY.intersection(json.loads(modules)) == set()


def test_all_flags_of_transformers_are_known_without_it() -> None:
    flags = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert set(training_argument_types()) == flags


def test_of_a_transformers_that_is_built_otherwise_the_same_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = training_argument_types()
    (tmp_path / "other.py").write_text(
        "from .mixins import Flags\nclass TrainingArguments(Flags):\n    seed: int = 1\n"
    )
    monkeypatch.setattr(arguments, "_file_of_transformers", lambda name: tmp_path / "other.py")
    assert arguments._hf_argument_parser() is HfArgumentParser
    assert sorted(training_argument_types()) == sorted(flags)


def test_help_of_everything_shows_transformers_flags_too(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            cli.run([flag])
        assert ended.value.code == 0
        shown[flag] = capsys.readouterr().out
    assert "--help-all shows too" in " ".join(shown["--help"].split())
    assert "--learning_rate" not in shown["--help"]
    assert "--learning_rate" in shown["--help-all"]
    assert shown["--help-all"].index("--delta_source") < shown["--help-all"].index("--learning_rate")
