"""The log: lines for people, or JSON objects that hold what libraries and refusals say too."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cal_pipeline.log_lines import LogLines, typed_format
from cal_pipeline.runtime.worker_process import last_words

CODE = """
import logging, sys, warnings
library = logging.getLogger("library"); library.addHandler(logging.StreamHandler()); library.propagate = False
from cal_pipeline.log_lines import LogLines, log_to, say
lines = LogLines(sys.argv[1])
log_to(sys.stderr, lines)
library.warning("from a library")
warnings.warn("from Python")
logging.getLogger("ours").info("tried: %s", "b", extra={"shard": "b"})
lines.shard = "data/s01"
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("ours").exception("of a worker")
say("cal-precompute", "refused")
{}["surprise"]
"""


def logged(log_format: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CODE, log_format], capture_output=True, text=True, check=False)
    return done.stderr.splitlines()


def test_a_log_in_json_is_one_object_a_line_whoever_speaks() -> None:
    lines = [json.loads(line) for line in logged("json")]
    assert [line["level"] for line in lines] == ["WARNING", "WARNING", "INFO", "ERROR", "ERROR", "CRITICAL"]
    assert lines[0]["message"] == "from a library"
    assert "UserWarning: from Python" in lines[1]["message"]
    assert (lines[2]["message"], lines[2]["shard"]) == ("tried: b", "b")
    assert (lines[3]["shard"], lines[3]["exception"].splitlines()[-1]) == (
        "data/s01",
        "ZeroDivisionError: division by zero",
    )
    assert (lines[4]["logger"], lines[4]["message"]) == ("cal-precompute", "refused")
    assert lines[5]["exception"].endswith("KeyError: 'surprise'")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}", line["time"]) for line in lines)


def test_a_log_for_people_has_times_and_in_a_worker_the_shard() -> None:
    lines = logged("text")
    assert any(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO tried: b", line) for line in lines)
    assert any(re.fullmatch(r"[-\d]+ [:,\d]+ ERROR data/s01: of a worker", line) for line in lines)
    assert "Traceback (most recent call last):" in lines
    assert "cal-precompute: refused" in lines
    assert lines[-1] == "KeyError: 'surprise'"


@pytest.mark.parametrize(
    ("line", "expected"), [("--log_format json", "json"), ("--log_format=json --nonsense", "json"),
                           ("--log_format", "text"), ("--log-format json", "json"), ("--log_format xml", "text"),
                           ("", "text")],
)  # fmt: skip
def test_the_format_is_known_of_a_command_line_that_is_wrong(line: str, expected: str) -> None:
    assert typed_format(line.split()) == expected


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_last_words_are_those_of_trouble_and_never_mere_news(log_format: str, tmp_path: Path) -> None:
    stream = io.StringIO()
    lines = LogLines(log_format)  # type: ignore[arg-type]
    lines.shard = "s01"
    logger = logging.Logger("worker")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(lines)
    logger.addHandler(handler)
    logger.info("begins")
    (tmp_path / "log").write_text(stream.getvalue())
    assert last_words(tmp_path / "log").endswith("says nothing")
    try:
        raise RuntimeError("CUDA error")
    except RuntimeError:
        logger.exception("this process ends")
    logger.info("begins")
    (tmp_path / "log").write_text(stream.getvalue())
    assert last_words(tmp_path / "log") == "its log ends with: RuntimeError: CUDA error"


@pytest.mark.parametrize("message", ["", "no room"])
def test_a_log_in_json_that_ends_within_a_line_is_quoted_too(message: str, tmp_path: Path) -> None:
    said = LogLines("json").format(logging.LogRecord("worker", logging.ERROR, "", 1, message, None, None))
    (tmp_path / "log").write_text(said)
    assert last_words(tmp_path / "log").endswith(message or "says nothing")
    (tmp_path / "log").write_text(said[:-5])
    assert last_words(tmp_path / "log") == f"its log ends with: {said[:-5]}"


@pytest.mark.parametrize("program", ["cal-precompute", "cal-train", "cal-inspect summary"])
def test_every_program_refuses_in_json_where_that_is_asked_for(program: str, tmp_path: Path) -> None:
    name, *words = program.split()
    argv = [Path(sys.executable).parent / name, *words, "--log_format", "json", "--nonsense"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert (json.loads(line)["level"], json.loads(line)["logger"]) == ("ERROR", name)
