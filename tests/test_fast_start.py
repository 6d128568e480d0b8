"""Programs answer --help, a typo and a wrong path before they import what takes seconds: imports are counted."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import HfArgumentParser, TrainingArguments

from cal_pipeline import transformers_source
from cal_pipeline.transformers_source import training_argument_flags
from cal_trainer.trainer_flags import TrainerFlags

HEAVY = {"torch", "transformers", "ray", "pandas", "datasets", "matplotlib", "scipy", "prometheus_client"}
RUN_EACH = """
import importlib, json, os, sys
programs = {name: importlib.import_module(module) for name, module in json.loads(sys.argv[1]).items()}
for folder, program, *argv in json.load(sys.stdin):
    if pid := os.fork():
        os.waitpid(pid, 0)
        continue
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv[:] = [program, *argv]
    try:
        sys.exit(programs[program].main())
    except SystemExit as end:
        sys.stdout.flush()
        with open("end.json", "w") as file:
            json.dump([end.code or 0, [name for name in sys.modules if "." not in name]], file)
    os._exit(0)
"""
"""Each command line in a copy of a process that has imported the programs and has run none."""
PROGRAMS = {
    "cal-precompute": "cal_pipeline.cli",
    "cal-train": "cal_trainer.cli",
    "cal-inspect": "cal_pipeline.inspect.cli",
    "cal-convert-mgm": "cal_pipeline.models.mini_gemini.cli",
}
ANSWERS = (
    ("cal-precompute --help", 0, "--rows_per_shard"),
    ("cal-precompute --help-all", 0, "--encode_threads"),
    ("cal-precompute --version", 0, "(torch "),
    ("cal-precompute --print_completion zsh", 0, "#compdef cal-precompute"),
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
    ("cal-precompute MEASURE nope.json --num_workers 1000", 2, "asks for 1000 CPUs, and this machine has"),
    ("cal-precompute MEASURE --verbose", 2, "--verbose says how much --dry_run lists"),
    ("cal-precompute MEASURE --dtype float12", 2, "invalid choice: 'float12'"),
    ("cal-precompute MEASURE nope.json", 2, "--data_path nope.json: no file there"),
    ("cal-precompute MEASURE --image_folder nope", 2, "--image_folder nope: no such directory"),
    ("cal-precompute MEASURE --model_name_or_path no/such", 2, "no/such: no such directory"),
    ("cal-precompute MEASURE --output_dir data.json", 2, "data.json cannot be written"),
    ("cal-precompute MEASURE --config absent.yaml", 2, "--config absent.yaml: No such file"),
    ("cal-train --help", 0, "--delta_source"),
    ("cal-train --help-all", 0, "--adam_beta1"),
    ("cal-train --version", 0, "(torch "),
    ("cal-train --print_completion bash", 0, "--adam_beta1"),
    ("cal-train --model_name_or_path model --data_path annotated", 2, "required: --output_dir"),
    ("cal-train --output_dri out --data_path annotated", 2, "unknown flag --output_dri; did you mean --output_dir?"),
    ("cal-train TRAIN --config typo.yaml", 2, "typo.yaml: unknown flag --learning_rat; did you mean --learning_rate?"),
    ("cal-train TRAIN --delta_sauce cached", 2, "unknown flag --delta_sauce; did you mean --delta_source?"),
    ("cal-train TRAIN --learning_rat 1", 2, "unknown flag --learning_rat; did you mean --learning_rate?"),
    ("cal-train TRAIN --window 2 --pool spam", 2, "invalid choice: 'spam'"),
    ("cal-train TRAIN nope", 2, "nope: no annotated shards"),
    ("cal-train TRAIN --eval_path nope", 2, "--eval_path nope: no file there"),
    ("cal-train TRAIN --image_folder nope", 2, "--image_folder nope: no such directory"),
    ("cal-train TRAIN --eval_path data.json --eval_image_folder no", 2, "--eval_image_folder no: no such directory"),
    ("cal-train TRAIN --source_path nope", 2, "--source_path nope: no file there"),
    ("cal-train TRAIN --report_to tensorbord", 2, "invalid choice: 'tensorbord'; did you mean tensorboard?"),
    ("cal-train TRAIN --report_to wandb", 2, "--report_to wandb: it is not installed: pip install wandb"),
    ("cal-train TRAIN --save_steps often", 2, "argument --save_steps: invalid float value: 'often'"),
    ("cal-train TRAIN --model_name_or_path no/such", 2, "no/such: no such directory"),
    ("cal-inspect --help", 0, "SUBCOMMAND"),
    ("cal-inspect --version", 0, "(torch "),
    ("cal-inspect sumary", 2, "'sumary'; did you mean summary?"),
    ("cal-convert-mgm --help", 0, "--aux_vision"),
    ("cal-convert-mgm --version", 0, "(torch "),
    ("cal-convert-mgm --print_completion zsh", 0, "#compdef cal-convert-mgm"),
    ("cal-convert-mgm model", 2, "cal-convert-mgm: the following arguments are required: --output"),
    ("cal-convert-mgm model --outptu x", 2, "cal-convert-mgm: unknown flag --outptu; did you mean --output?"),
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each line was run: `said` holds what it printed, `end.json` its exit code and what it had imported."""
    folders = {line: tmp_path_factory.mktemp("line") for line, *_ in ANSWERS}
    for folder in folders.values():
        (folder / "model").mkdir()
        (folder / "data.json").write_text("[]")
        (folder / "typo.yaml").write_text("learning_rat: 1e-5\n")
        (folder / "annotated").mkdir()
        pq.write_table(
            pa.table({}).replace_schema_metadata({"cal.format_version": "0"}), folder / "annotated/a.parquet"
        )
        (folder / "begun" / ".cal" / "reports").mkdir(parents=True)
        (folder / "begun" / ".cal" / "reports" / "run-1.json").write_text(json.dumps(REPORT))
    words = []
    for line, folder in folders.items():
        for short, flags in SHORT.items():
            line = line.replace(short, flags)
        words.append([str(folder), *line.split()])
    subprocess.run(
        [sys.executable, "-c", RUN_EACH, json.dumps(PROGRAMS)], input=json.dumps(words), text=True, timeout=600,
        check=True,
    )  # fmt: skip
    return folders


@pytest.mark.parametrize(("line", "code", "answer"), ANSWERS, ids=[line for line, *_ in ANSWERS])
def test_an_answer_imports_nothing_heavy(line: str, code: int, answer: str, folders: dict[str, Path]) -> None:
    said = (folders[line] / "said").read_text()
    ended, modules = json.loads((folders[line] / "end.json").read_text())
    assert (ended, answer in said) == (code, True), said
    assert HEAVY.intersection(modules) == set()


def test_all_flags_of_transformers_are_known_without_it() -> None:
    flags = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert set(training_argument_flags()) == flags


def test_of_a_transformers_that_is_built_otherwise_the_same_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = training_argument_flags()
    (tmp_path / "other.py").write_text(
        "from .mixins import Flags\nclass TrainingArguments(Flags):\n    seed: int = 1\n"
    )
    monkeypatch.setattr(transformers_source, "file_of_transformers", lambda name: tmp_path / "other.py")
    assert transformers_source.hf_argument_parser() is HfArgumentParser
    assert sorted(training_argument_flags()) == sorted(flags)


def test_transformers_flags_that_have_words_of_ours_are_its_own() -> None:
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    changed = {"do_train", "output_dir", "remove_unused_columns", "prediction_loss_only", "logging_nan_inf_filter"}
    for field in dataclasses.fields(TrainerFlags):
        assert (theirs[field.name].default == field.default) == (field.name not in changed), field.name
        named = getattr(theirs[field.name].type, "__name__", str(theirs[field.name].type))
        # Not field.type, in which a parser that ran before has put a type for its name.
        assert TrainerFlags.__annotations__[field.name] in (named, "str"), field.name


def test_defaults_and_words_of_transformers_flags_are_read_as_they_are() -> None:
    read = training_argument_flags()
    for field in dataclasses.fields(TrainingArguments):
        if field.init and isinstance(field.default, int | float):
            assert float(ast.literal_eval(read[field.name].default)) == field.default, field.name
            assert read[field.name].help == field.metadata["help"], field.name
