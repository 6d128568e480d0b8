"""Before the first step one line says what is trained on what, and nobody else speaks."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.spec import ContrastSpec
from cal_trainer.run.facts import RunFacts
from cal_trainer.run.start_line import start_line
from conftest import Family
from fault_job import PATIENCE_S
from run_facts import with_flags
from tiny_data import write_llava_json
from trained import command


def test_the_line_names_rows_steps_parameters_deltas_and_the_denominator() -> None:
    # 4 rows on each of 8 ranks, 512 tokens each.
    facts = replace(with_flags(data_path=["annotated"]), num_planned=110)
    assert start_line(facts, steps=(0, 30), tokens_per_row=512) == (
        "training on 90 of 110 planned rows of annotated (10 more are not ok); 30 steps of 32 rows and about "
        "16,384 tokens; 7,000,000 parameters of projector, language_model; deltas cached of llava-hf/llava-1.5-7b-hf "
        "by mask; alpha 0.5, beta inf, window 5, pool joined; divided by: sample"
    )


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(with_flags(), num_rows=20), "; steps 13 to 30 of 20 rows and about 10,240 tokens; "),
        (with_flags(delta_source="uniform"), "; no deltas: every token weighs 1; divided by: sample"),
        (
            replace(with_flags(delta_source="online", lora_r=8), contrast=ContrastSpec(condition="mask")),
            "of projector, language_model as adapters; deltas online by mask; alpha 0.5,",
        ),
        (
            replace(with_flags(source_path=["raw.json"]), skipped={}),
            "rows of annotated/a|b, raw.json; steps 13 to 30 of 32 rows",
        ),
    ],
)
def test_the_line_follows_what_is_trained(facts: RunFacts, said: str) -> None:
    assert said in start_line(facts, steps=(12, 30), tokens_per_row=512)


def test_the_line_of_a_run_that_took_all_its_steps_before_says_so() -> None:
    assert "; none left of 30 steps of 32 rows" in start_line(with_flags(), steps=(30, 30), tokens_per_row=512)


@pytest.mark.full
def test_nobody_else_speaks_before_the_line(llava: Family, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path, 24)
    annotated = annotate(tmp_path / "out", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)
    argv = command(llava, annotated, tmp_path / "trained", "--max_steps", 1, "--gradient_checkpointing", "true",
                   "--disable_tqdm", "false")  # fmt: skip
    done = subprocess.run(
        [str(Path(sys.executable).parent / "cal-train"), *argv], capture_output=True, text=True, timeout=PATIENCE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    before, line, _ = done.stderr.partition("training on 16 rows of")
    assert line
    ours = r"\d{4}-\d\d-\d\d [\d:,]+ "
    assert re.fullmatch(
        rf"({ours}WARNING {re.escape(str(annotated))}: 8 of 24 rows are skipped: .*\n)?{ours}INFO ", before
    )
