"""page, audit, attention and patch-words on every kind of directory: clear output, or one clear error.

The other subcommands have this table in test_cli.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from cal_pipeline.inspect.commands.page import read_page_data
from cal_pipeline.models.loading import load_processor
from conftest import Family
from inspect_data import cut
from inspected_data import measured
from tiny_data import write_llava_json

COMMANDS = {
    "page": ["--output", "{out}/report.html"],
    "audit": ["--fraction", "1", "--device", "cpu"],
    "attention": ["--sample", "#0", "--output", "{out}/map.png", "--device", "cpu"],
    "patch-words": ["--sample", "#0", "--output", "{out}/words.png", "--device", "cpu"],
}
REFUSED: dict[str, dict[str, str]] = {
    "nothing": dict.fromkeys(COMMANDS, "no annotated shards (*.parquet) here"),
    "absent": dict.fromkeys(COMMANDS, "no such file or directory"),
    "truncated": dict.fromkeys(COMMANDS, "not a readable Parquet file"),
    "failed": {"audit": "none of the", "attention": "is not a file", "patch-words": "is not a file"},
    "no_rows": {"audit": "none of the 0 rows has deltas", "attention": "no row has", "patch-words": "no row has"},
    "text_only": {"attention": "has 0 images", "patch-words": "has 0 images"},
}
SAID = {("audit", "text_only"): "Swap control: not possible", ("audit", "normal"): "The cache agrees"}
ROWS = {"normal": 24, "sidecar": 24, "no_rows": 0}


@pytest.fixture(scope="module")
def kinds(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one of each kind inside."""
    folder = tmp_path_factory.mktemp("kinds")
    data, images = write_llava_json(folder / "raw", 24)
    normal = measured(llava, folder / "normal", [data], images, carry="images")
    measured(llava, folder / "sidecar", [data], images, carry="none")
    cut(normal, folder / "failed", lambda row: row["status"] != "ok")
    cut(normal, folder / "no_rows", lambda row: False)
    cut(normal, folder / "text_only", lambda row: row["status"] == "ok" and not row["images"])
    for name in ("failed", "no_rows", "text_only"):
        shutil.copytree(normal / ".cal" / "reports", folder / name / ".cal" / "reports")
    shutil.copytree(normal, folder / "truncated")
    last = max((folder / "truncated").glob("*.parquet"))
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    (folder / "nothing" / ".cal").mkdir(parents=True)
    return folder


def cases() -> list[object]:
    drawn = {(name, kind) for name in ("attention", "patch-words") for kind in ("normal", "sidecar")}
    return [
        pytest.param(name, kind, id=f"{name}-{kind}", marks=[pytest.mark.full] if (name, kind) in drawn else [])
        for name in COMMANDS
        for kind in ("normal", "sidecar", *REFUSED)
    ]


@pytest.mark.parametrize(("name", "kind"), cases())
def test_clear_output_or_one_clear_error(
    name: str, kind: str, kinds: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run([name, str(kinds / kind), *[part.format(out=tmp_path) for part in COMMANDS[name]]])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    reason = REFUSED.get(kind, {}).get(name)
    if reason is None:
        assert code == EXIT_DONE, err
        assert SAID.get((name, kind), "") in out
        assert out.strip()
        if name == "page":
            data = read_page_data(tmp_path / "report.html")
            assert len(data["samples"]) == data["rows"] == ROWS.get(kind, data["rows"])
    else:
        assert code == EXIT_REFUSED, out
        (line,) = [line for line in err.splitlines() if line.startswith("cal-inspect: ")]
        assert reason in line
        assert not list(tmp_path.iterdir()), "what was refused leaves nothing behind"


@pytest.mark.parametrize("name", ["audit", "attention", "patch-words"])
def test_a_directory_of_adapters_is_no_model_in_one_line(
    name: str, kinds: Path, llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = tmp_path / "adapters"
    load_processor(llava.directory).save_pretrained(adapters)
    LoraConfig(r=2, base_model_name_or_path=str(llava.directory)).save_pretrained(adapters)
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 8)}, adapters / "adapter_model.safetensors")
    flags = [part.format(out=tmp_path / "out") for part in COMMANDS[name]]
    assert run([name, str(kinds / "normal"), *flags, "--model_name_or_path", str(adapters)]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{adapters} holds adapters (adapter_config.json) of {llava.directory} and no model" in line
