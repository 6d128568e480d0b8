"""Pages of help: they fit, hold every flag once, and end with examples that parse; shells complete the flags."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline import cli as precompute
from cal_pipeline.arguments import chosen, parse_config
from cal_pipeline.inspect import cli as inspect
from cal_pipeline.models.mini_gemini import cli as convert
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.transformers_source import training_argument_flags
from cal_trainer import cli as train
from help_pages import PROGRAMS, examples_of, page_of

PAGES = [*PROGRAMS, *(f"cal-inspect {name}" for name in inspect.SUBCOMMANDS)]


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_terminal_and_ends_with_three_examples(name: str, flag: str) -> None:
    page = page_of(name, flag)
    assert max(map(len, page.splitlines())) <= 80
    assert len(examples_of(page)) >= 3
    assert all(example.startswith(f"{name} ") for example in examples_of(page))


@pytest.mark.parametrize(
    ("name", "groups", "lines"),
    [
        ("cal-precompute", "model data encoding measurement output running options", 110),
        ("cal-train", "model data encoding measurement weights training output running options", 125),
        ("cal-convert-mgm", "model output options", 50),
        ("cal-inspect show", "weights options", 47),
    ],
)
def test_flags_are_in_groups_and_the_page_is_short(name: str, groups: str, lines: int) -> None:
    page = page_of(name, "--help")
    titles = [line[:-1] for line in page.splitlines() if re.fullmatch(r"[a-z ']+:", line)]
    assert [title for title in titles if title not in ("positional arguments", "examples")] == groups.split()
    assert len(page.splitlines()) <= lines


@pytest.mark.parametrize("name", ["cal-precompute", "cal-train"])
def test_the_rarer_flags_are_counted_and_all_shown_by_help_all(name: str) -> None:
    page, whole = page_of(name, "--help"), page_of(name, "--help-all")
    shown, all_of_them = (
        re.findall(r"^  (?:-h, )?--(?:\[no_\])?([\w-]+)", text, re.MULTILINE) for text in (page, whole)
    )
    assert len(set(all_of_them)) == len(all_of_them)
    (said,) = re.findall(rf"{name} --help-all shows more flags: ([^.]*)\.", page)
    assert sum(map(int, re.findall(r"\d+", said))) == len(all_of_them) - len(shown)
    wanted = {*training_argument_flags()} if name == "cal-train" else {*PrecomputeConfig.__dataclass_fields__}
    assert wanted <= set(all_of_them)
    assert "shows more flags" not in whole


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.yaml").write_text("data_path: annotated/\nmodel_name_or_path: model\n")
    for example in examples_of(page_of(name, "--help")):
        given = shlex.split(example)[1:]
        if name == "cal-precompute":
            if not chosen(PrecomputeConfig, ("status", "verify", "clean"), given):
                parse_config(PrecomputeConfig, given, program=name, description="")
        elif name == "cal-train":
            train._parsed([train.TrainConfig, train.TrainerFlags], given, others=training_argument_flags())
        elif name == "cal-convert-mgm":
            convert._parser().parse_args(given)
        else:
            inspect._parser(given)[0].parse_args(given)


def test_versions_are_those_that_are_installed(capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    import transformers

    with pytest.raises(SystemExit):
        precompute.run(["--version"])
    said = capsys.readouterr().out
    assert (
        f"(torch {torch.__version__}, transformers {transformers.__version__}, Python {sys.version.split()[0]})" in said
    )


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each program prints for each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for name in PROGRAMS:
        for shell in ("bash", "zsh"):
            (folder / f"{name}.{shell}").write_text(page_of(name, "--print_completion", shell))
    return folder


COMPLETED = [
    ("cal-precompute --rows_", {"--rows_per_shard"}),
    ("cal-precompute --contrast ", {"drop", "mask", "patch_mask", "gaussian_blur"}),
    ("cal-precompute --data_path da", {"data.json"}),
    ("cal-precompute --enc", {"--encode_threads"}),
    ("cal-precompute --data_path data.json --enc", {"--encode_threads"}),
    ("cal-precompute --dry_run --enc", {"--encode_threads"}),
    ("cal-train --adam_b", {"--adam_beta1", "--adam_beta2"}),
    ("cal-train --use_cpu --adam_b", {"--adam_beta1", "--adam_beta2"}),
    ("cal-train --delta_source un", {"uniform"}),
    ("cal-inspect su", {"summary"}),
    ("cal-inspect show --tok", {"--tokenizer"}),
    ("cal-inspect export data.json --to label", {"labelling-sheet"}),
    ("cal-convert-mgm --unt", {"--untrained"}),
]


@pytest.mark.parametrize(("line", "completed"), COMPLETED)
def test_bash_completes(line: str, completed: set[str], scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("")
    name, *words = line.split(" ")
    function = f"_shtab_{name.replace('-', '_')}"
    script = (
        f"source {scripts}/{name}.bash; COMP_WORDS=({name} {shlex.join(words)}); COMP_CWORD={len(words)}; "
        f'{function} 2>/dev/null; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == completed


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("cal-precompute --rows_", "--rows_per_shard"),
        ("cal-precompute --contrast ga", "gaussian_blur"),
        ("cal-precompute --data_path da", "data.json"),
        ("cal-precompute --data_path data.json --enc", "--encode_threads"),
        ("cal-train --adam_e", "--adam_epsilon"),
        ("cal-train --use_cpu --adam_e", "--adam_epsilon"),
        ("cal-inspect summ", "summary"),
        ("cal-inspect show --tok", "--tokenizer"),
    ],
)
def test_zsh_completes(line: str, completed: str, scripts: Path, tmp_path: Path) -> None:
    """At a terminal: the key is pressed, and the line read back."""
    (tmp_path / "data.json").write_text("")
    name = line.split(" ")[0]
    (tmp_path / f"_{name}").write_text((scripts / f"{name}.zsh").read_text())
    setup = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump; PS1=ready:\n"
    assert completed in typed_at_zsh(setup, line, tmp_path, until=completed)


def typed_at_zsh(setup: str, line: str, folder: Path, *, until: str) -> str:
    """What zsh shows, up to the text that is waited for, once it is ready, the line is typed and the key is pressed."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "HOME": str(folder)})
    try:
        os.write(terminal, setup.encode())
        read_until(terminal, lambda text: text.count("ready:") > 1)
        os.write(terminal, f"{line}\t".encode())
        return read_until(terminal, lambda text: until in text)
    finally:
        os.write(terminal, b"\x03exit\n")
        os.close(terminal)
        os.waitpid(pid, 0)


def read_until(terminal: int, enough: Callable[[str], bool], seconds: float = 30.0) -> str:
    said, end = "", time.monotonic() + seconds
    while time.monotonic() < end and not enough(said):
        if select.select([terminal], [], [], 0.2)[0]:
            said += os.read(terminal, 4096).decode(errors="replace")
    return said


def test_without_shtab_completion_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked: Any = None
    monkeypatch.setitem(sys.modules, "shtab", blocked)
    assert precompute.run(["--print_completion", "bash"]) == 2
    assert "shtab is missing: pip install 'cal-vlm[completion]'" in capsys.readouterr().err
