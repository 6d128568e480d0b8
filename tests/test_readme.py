"""README: short, in its order, and true: commands parse, columns are there, exit codes are those of real runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from annotated_data import annotate
from cal_pipeline.arguments import parse_config
from cal_pipeline.inspect import cli as inspect_cli
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli as train_cli
from conftest import Family
from fault_job import PATIENCE_S
from inspected_data import parquet_directory
from tiny_data import write_llava_json

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
HEADINGS = [
    "Install", "Measure", "What comes out", "Looking at it", "Training with it", "Models", "Where to go on", "Citation",
    "Licence",
]  # fmt: skip
MAX_WORDS = 900


def section(name: str) -> str:
    return TEXT.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def table(name: str) -> dict[str, str]:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section(name), re.MULTILINE)
    return {first.strip("`"): second for first, second in rows[1:]}


def commands() -> list[list[str]]:
    lines = "\n".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_it_is_short_and_in_its_order() -> None:
    assert len(TEXT.split()) <= MAX_WORDS
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE) == HEADINGS
    before = TEXT.partition("\n## ")[0].strip().split("\n\n")
    assert [part[0] for part in before] == ["#", "C", "!"]
    assert len(re.findall(r"[.!?](?:\s|$)", before[1])) == 1
    assert len(section("Install").partition("```bash\n")[2].partition("```")[0].splitlines()) == 3
    assert len(section("Measure").partition("```bash\n")[2].partition("```")[0].splitlines()) == 5
    assert len(table("What comes out")) == 5


def test_its_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    said = {words[0] for words in commands()}
    assert said == {"pip", "make", "cal-precompute", "cal-inspect", "cal-train", "accelerate"}
    for words in commands():
        if "cal-train" in " ".join(words):
            flags = words[words.index("cal-train)") + 1 :] if words[0] == "accelerate" else words[1:]
            train_cli.parse([*flags, "--use_cpu"])  # Else a machine without a GPU refuses --bf16.
        elif words[0] == "cal-precompute":
            parse_config(PrecomputeConfig, words[1:], program="cal-precompute", description="")
        elif words[0] == "cal-inspect":
            inspect_cli._parser(words[1:])[0].parse_args(words[1:])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_its_five_columns_mean_what_it_says(llava: Family, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path, count=16)
    shards = plan_shards([str(data)], [str(images)])
    annotate(tmp_path / "annotated", shards, llava.encoder, llava.model, carry="paths")
    rows = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "annotated").glob("*.parquet")))).to_pylist()
    columns = table("What comes out")
    assert [*columns] == ["sample_id", "messages", "status", "label_ids", "delta_logits"]
    assert set(columns) | {"images", "error"} <= set(rows[0])
    assert len(rows) == 16
    bad = 0
    for row in rows:
        assert isinstance(row["sample_id"], str)
        if row["status"] == "ok":
            assert len(row["label_ids"]) == len(row["delta_logits"]) > 0
        else:
            assert row["error"]
            assert not row["delta_logits"]
            bad += 1
    assert 0 < bad < 16


def test_its_lines_of_python_run(llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_directory(llava, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (code,) = [text for language, text in BLOCKS if language == "python"]
    exec(code, names)
    assert {"token", "delta", "weight"} <= set(names["tokens"])
    assert {"mean_delta", "min_delta", "share_negative"} <= set(names["samples"])
    assert len(names["frame"]) == len(names["samples"]) == 12


def test_both_citations_name_the_paper_and_this_software() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = cited["references"]
    bibtex = section("Citation")
    assert paper["title"] in bibtex
    assert all(author["family-names"] in bibtex for author in paper["authors"])
    assert cited["title"] in bibtex
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "flags"),
    [
        (0, {}),
        (1, {"--max_image_pixels": "1", "--max_error_fraction": "1", "--data_path": "images_only.json"}),
        (2, {"--data_path": "absent.json"}),
    ],
    ids=["all there", "no row ok", "refused"],
)
def test_its_exit_codes_are_what_happens(code: int, flags: dict[str, str], llava: Family, tmp_path: Path) -> None:
    assert [*table("Measure")] == ["0", "1", "2"]
    data, _ = write_llava_json(tmp_path, count=3)
    (tmp_path / "images_only.json").write_bytes(data.read_bytes())
    given = {
        "--model_name_or_path": str(llava.directory), "--data_path": "data.json", "--image_folder": "images",
        "--output_dir": "annotated", "--gpus_per_worker": "0", **flags,
    }  # fmt: skip
    words = [word for pair in given.items() for word in pair]
    done = subprocess.run(
        [Path(sys.executable).parent / "cal-precompute", *words], cwd=tmp_path, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert (lines[-1].startswith("cal-precompute: ") and len(lines) == 1) == (code == 2)
