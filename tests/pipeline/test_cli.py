"""Runs `cal-precompute` as a user does: real processes, real Ray, real files, a real SIGKILL."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from cal_pipeline import cli
from cal_pipeline.encoding.identity import label_spec
from cal_pipeline.runtime import execution
from cal_schemas.opened import open_annotated
from cal_schemas.spec import ContrastSpec
from conftest import Family
from fault_job import PATIENCE_S, Job, frozen
from faulty_model import build_faulty_llava
from tiny_data import BAD_ROWS, MAX_IMAGE_PIXELS, write_llava_json, write_parquet

PROGRAM = Path(sys.executable).parent / "cal-precompute"
ROWS, ROWS_PER_SHARD = 60, 10
pytestmark = pytest.mark.slow


def command(family: Family, *flags: str, output: str) -> list[str]:
    """The command line with its defaults, apart from the flags that are given."""
    defaults = {
        "--model_name_or_path": str(family.directory), "--dtype": "float32", "--data_path": "data.json",
        "--image_folder": "images", "--output_dir": output, "--rows_per_shard": str(ROWS_PER_SHARD),
        "--max_image_pixels": str(MAX_IMAGE_PIXELS), "--tokens_per_batch": "512", "--gpus_per_worker": "0",
        "--trust_remote_code": "true",
    }  # fmt: skip
    kept = [part for pair in defaults.items() if pair[0] not in flags for part in pair]
    return [str(PROGRAM), *kept, *flags]


def precompute(
    family: Family, folder: Path, output: str, *flags: str, settings: dict[str, str] | None = None
) -> tuple[int, str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        command(family, *flags, output=output), cwd=folder, text=True, capture_output=True, timeout=PATIENCE_S,
        env={**environment, "HF_MODULES_CACHE": str(folder / "modules"), **(settings or {})}, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def shards(output: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.glob("*.parquet")}


def table(output: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(output.glob("*.parquet"))], ignore_index=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_llava_json(folder, ROWS)
    return folder


@pytest.fixture(scope="module")
def meeting(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The same LLaVA, except that the first worker waits in mid-shard until a second is in mid-shard too."""
    folder = tmp_path_factory.mktemp("meeting")
    model = build_faulty_llava(folder / "llava", lengths={"meet": [60, 10**6]}, marker=str(folder / "met"))
    return replace(llava, directory=model)


@pytest.fixture(scope="module")
def finished(folder: Path, meeting: Family) -> tuple[Path, str, str]:
    """One run shared by two workers and by the tests below: its output directory, stdout and stderr.

    Where it is started lie scripts of the user's, named as modules that it imports; there is no home.
    """
    for name in ("timeit", "tokenizers", "pyarrow"):
        (folder / f"{name}.py").write_text(f"open('{name}.was_run', 'w')")
    home = {"HOME": "/proc/nowhere"}
    relative = replace(meeting, directory=Path(os.path.relpath(meeting.directory, folder)))
    flags = ("--num_workers", "2", "--limit", "1000")
    code, out, err = precompute(relative, folder, "two", *flags, settings=home)
    assert code == 0, err
    return folder / "two", out, err


def test_rows_out_equal_rows_in_with_their_statuses(finished: tuple[Path, str, str], folder: Path) -> None:
    frame = table(finished[0])
    source = json.loads((folder / "data.json").read_text())
    assert frame["sample_id"].tolist() == [str(row["id"]) for row in source]
    expected = [BAD_ROWS.get(number, ("ok",))[0] for number in range(ROWS)]
    assert frame["status"].tolist() == expected


def test_table_report_and_files_say_what_happened(finished: tuple[Path, str, str]) -> None:
    output, out, _ = finished
    assert "image_error" in out
    assert "6 shards with 60 rows" in out
    report = json.loads(next((output / ".cal" / "reports").glob("*.json")).read_text())
    assert report["statuses"]["ok"] == ROWS - len(BAD_ROWS)
    assert len(report["workers"]) == 2
    named = Path(report["config"]["model_name_or_path"])
    assert named.is_absolute()
    assert (named / "config.json").is_file()
    assert {item["worker"] for item in report["shards"]} == set(report["workers"])
    assert sorted(item["rows"] for item in report["shards"]) == [10] * 6
    assert sorted(path.name for path in output.iterdir()) == [
        ".cal", *[f"data-r{n:09d}-{n + 10:09d}.parquet" for n in range(0, 60, 10)],
    ]  # fmt: skip
    assert list((output / ".cal" / "staging").iterdir()) == []


def test_scripts_of_the_working_directory_are_not_imported_by_workers(
    finished: tuple[Path, str, str], folder: Path
) -> None:
    assert (folder / "timeit.py").exists()
    assert not list(folder.glob("*.was_run"))


def test_metadata_tells_what_measured_it(finished: tuple[Path, str, str], llava: Family, folder: Path) -> None:
    opened = open_annotated(finished[0])
    assert opened.num_rows == ROWS
    assert (opened.spec.model_id, opened.spec.dtype, opened.spec.contrast.condition) == ("llava", "float32", "drop")
    assert opened.spec.label == label_spec(llava.encoder)
    source = opened.metadata[1].source
    assert (source.row_start, source.row_stop, source.num_rows) == (10, 20, 10)
    assert source.size == (folder / "data.json").stat().st_size
    assert opened.metadata[0].library_versions["torch"]


def test_pandas_pyarrow_and_datasets_read_the_output(finished: tuple[Path, str, str], tmp_path: Path) -> None:
    output = finished[0]
    assert len(pd.read_parquet(output)) == ROWS
    assert pyarrow.dataset.dataset(output, format="parquet").count_rows() == ROWS
    loaded = datasets.load_dataset("parquet", data_dir=str(output), cache_dir=str(tmp_path))
    assert loaded["train"].num_rows == ROWS


@pytest.mark.full
def test_one_worker_gives_identical_columns(finished: tuple[Path, str, str], folder: Path, meeting: Family) -> None:
    code, _, err = precompute(meeting, folder, "one", "--num_workers", "1")
    assert code == 0, err
    for name, (content, _) in shards(finished[0]).items():
        one, two = pq.read_table(folder / "one" / name), pq.read_table(finished[0] / name)
        assert one.equals(two), name
        assert len(content) > 0


def test_running_again_does_nothing_and_touches_nothing(
    finished: tuple[Path, str, str], argv: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    before = shards(finished[0])
    assert (cli.run(argv("--num_workers", "2")), shards(finished[0])) == (0, before)
    assert (
        "nothing to do: all 6 shards in two are done; of their rows 8 of 60 are not ok (2 encode_error, 5 image_error, "
        "1 no_supervised_tokens): the column error says why, and --redo_status "
        "encode_error,image_error,no_supervised_tokens measures them again"
    ) in capfd.readouterr().out


@pytest.mark.full
def test_sigkill_of_the_driver_loses_nothing(folder: Path, llava: Family, finished: tuple[Path, str, str]) -> None:
    # One row per shard: many commits, so that the kill lands among them.
    flags = ("--image_folder", str(folder / "images"), "--max_image_pixels", str(MAX_IMAGE_PIXELS),
             "--num_workers", "2", "--rows_per_shard", "1", "--limit", "40")  # fmt: skip
    job = Job(model=llava.directory, data=folder / "data.json", output=folder / "killed", flags=flags)
    process = job.start()
    with frozen(process, job, done=3):
        process.kill()
        process.wait()
        before = job.contents()
        assert 3 <= len(before) < 40
        # Readers see a directory of whole shards, whatever was in flight.
        assert len(pd.read_parquet(job.output)) == len(before) == open_annotated(job.output).num_rows
    assert job.run("--num_workers", "1") == 0, job.said()
    after = job.contents()
    assert {name: after[name] for name in before} == before
    assert len(after) == 40
    one, other = table(job.output), table(finished[0])[:40]
    assert one[["sample_id", "status"]].equals(other[["sample_id", "status"]])
    for mine, theirs in zip(one["delta_logits"], other["delta_logits"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.full
def test_a_corrupt_shard_is_listed_after_three_tries_and_the_rest_is_done(tmp_path: Path, llava: Family) -> None:
    for name in ("a", "b", "c"):
        write_parquet(tmp_path / "data" / f"{name}.parquet")
    broken = tmp_path / "data" / "b.parquet"
    content = bytearray(broken.read_bytes())
    content[4:2000] = b"\xff" * 1996
    broken.write_bytes(content)
    code, out, err = precompute(
        llava, tmp_path, "out", "--data_path", "data", "--image_folder", str(tmp_path), "--carry", "images"
    )
    assert code == 1, err
    assert "FAILED b: " in out
    assert "b.parquet: corrupt Parquet file" in out.replace("\n", " ")
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.parquet")) == ["a", "c"]
    assert err.count("shard b, try") == 2


@pytest.fixture(scope="module")
def blurred(folder: Path, llava: Family) -> tuple[Path, str]:
    """A run over a part of the rows against blurred images: its output directory and stdout."""
    part = ("--sample", "0.3", "--seed", "1", "--rows_per_shard", "60")
    flags = (*part, "--contrast", "gaussian_blur", "--blur_sigma", "10", "--save_contrast_images", "3")
    code, out, err = precompute(llava, folder, "blurred", *flags)
    assert code == 0, err
    return folder / "blurred", out


@pytest.mark.full
def test_a_subset_prints_the_projection_for_the_whole(blurred: tuple[Path, str]) -> None:
    drawn = len(table(blurred[0]))
    assert 8 <= drawn <= 30
    assert f"subset: {drawn} of {ROWS} rows; the whole would take about" in blurred[1]


def test_a_limit_above_all_rows_is_no_subset(finished: tuple[Path, str, str]) -> None:
    assert f"{ROWS} rows" in finished[1]
    assert "subset" not in finished[1]


@pytest.mark.full
def test_a_perturbed_measurement_leaves_images_to_look_at(blurred: tuple[Path, str]) -> None:
    output = blurred[0]
    assert open_annotated(output).spec.contrast == ContrastSpec(condition="gaussian_blur", blur_sigma=10.0)
    images = sorted(path.name for path in (output / ".cal" / "contrast_images").iterdir())
    assert len(images) == 6
    assert sum(name.endswith("-gaussian_blur-10.png") for name in images) == 3
    assert [path.name for path in output.iterdir() if path.name != ".cal"] == ["data-r000000000-000000060.parquet"]


@pytest.mark.full
def test_redo_status_measures_repaired_rows_again(
    finished: tuple[Path, str, str], folder: Path, meeting: Family
) -> None:
    shutil.copytree(finished[0], folder / "again")
    before, missing = table(folder / "again"), folder / "images" / "missing.png"
    shutil.copyfile(folder / "images" / "0.png", missing)
    try:
        code, _, err = precompute(meeting, folder, "again", "--redo_status", "image_error")
    finally:
        missing.unlink()
    assert code == 0, err
    after = table(folder / "again")
    assert (before["status"][5], after["status"][5]) == ("image_error", "ok")
    kept = [number for number in range(ROWS) if number != 5]
    pd.testing.assert_frame_equal(before.loc[kept], after.loc[kept])


@pytest.mark.full
def test_a_run_of_which_no_row_is_ok_exits_1_as_does_the_same_command_again(
    tmp_path: Path, llava: Family, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": n, "conversations": [{"from": "human", "value": "Hello?"}]} for n in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "images").mkdir()
    code, out, err = precompute(llava, tmp_path, "out")
    assert code == 1, err
    assert "more than 1 row not ok would end the run (--max_error_fraction 0.5)" in err
    assert "stopped: 3 of 3 rows so far are not ok (--max_error_fraction 0.5; 1 never stops)" in err
    assert "where a data file is mended, remove its shards or choose another --output_dir" in err
    assert "none of the 3 rows looked at can be measured; the first: 0: no_supervised_tokens: the conversation" in err
    assert table(tmp_path / "out")["status"].tolist() == ["no_supervised_tokens"] * 3
    monkeypatch.chdir(tmp_path)
    assert cli.run(command(llava, "--max_error_fraction", "1", output="out")[1:]) == 1
    out, err = capfd.readouterr()
    assert "of their rows 3 of 3 are not ok (3 no_supervised_tokens)" in out
    assert "cal-precompute: no row is ok" in err


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_folder_without_the_images_is_refused_before_work_and_leaves_nothing(
    argv: Callable[..., list[str]], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    (folder / "others").mkdir()
    (folder / "others" / "else.png").touch()
    gone = f"--image_folder {folder}/empty is gone or empty (moved, or unmounted?)"
    for name, why in (("others", "image '0.png' is not a file in"), ("empty", gone)):
        for flags in (["--dry_run"], []):
            said = refusal(capfd, argv("--output_dir", "new/out", "--image_folder", name, *flags))
            assert (
                "--data_path data.json: none of the 8 images looked at can be read. The first is '0.png', and with"
                in said
            )
            assert f"--image_folder {folder}/{name} that is {folder}/{name}/0.png: {why}" in said
            assert not (folder / "new").exists()


@pytest.mark.parametrize("output", ["two", "new/out"])
def test_a_run_that_finds_no_cluster_leaves_its_output_as_it_was(
    output: str, finished: tuple[Path, str, str], argv: Callable[..., list[str]], folder: Path, meeting: Family,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_parquet(folder / "more.parquet", count=2)
    before = everything(folder)
    flags = ["--data_path", "data.json", "more.parquet", "--ray_address", "127.0.0.1:1", "--carry", "paths"]
    if output == "two":  # The plan on disk is that of the shards that are there.
        flags = ["--ray_address", "127.0.0.1:1", "--redo_status", "image_error"]
    assert "no Ray cluster at 127.0.0.1:1" in refusal(capfd, argv("--output_dir", output, *flags))
    assert everything(folder) == before


def refusal(capfd: pytest.CaptureFixture[str], argv: list[str]) -> str:
    assert cli.run(argv) == 2
    err = capfd.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("cal-precompute: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture
def argv(folder: Path, meeting: Family, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return lambda *flags: command(meeting, *flags, output="two")[1:]


def test_output_inside_the_data_and_data_inside_the_output_are_refused(
    llava: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", count=2)
    argv = ["--model_name_or_path", str(llava.directory), "--data_path", str(tmp_path / "data"), "--output_dir"]
    assert "would be its input next time" in refusal(capfd, [*argv, str(tmp_path / "data" / "out")])
    assert "keep input and output apart" in refusal(capfd, [*argv, str(tmp_path)])


REFUSED: dict[str, tuple[list[str], str]] = {
    "wrong flag": (["--contrats", "drop"], "unknown flag --contrats; did you mean --contrast?"),
    "wrong value": (["--dtype", "float12"], "invalid choice: 'float12'"),
    "missing model": (["--model_name_or_path", "no/such-model"], "no/such-model: no such directory"),
    "missing data": (["--data_path", "nope.json"], "--data_path nope.json: no file there"),
    "missing folder": (["--image_folder", "nope"], "--image_folder nope: no such directory"),
    "output is a file": (["--output_dir", "data.json"], "data.json cannot be written"),
    "output is nowhere": (["--output_dir", "/proc/x", "--dry_run"], "/proc/x cannot be written"),
    "no such GPU": (["--gpus_per_worker", "9"], "but torch sees"),
    "nothing drawn": (["--sample", "1e-9"], "draws none of the 60 rows"),
    "twice": (["--data_path", "data.json", "--data_path", "data.json"], "list all values after one flag"),
    "another measurement": (["--contrast", "mask"], "contrast.condition: 'drop' there, 'mask' now"),
    "another perturbation": (
        ["--contrast", "patch_mask", "--patch_mask_ratio", "0.7"],
        "contrast.condition: 'drop' there, 'patch_mask' now; contrast.patch_mask_ratio: None there, 0.7 now",
    ),
    "no ratio": (["--contrast", "patch_mask"], "needs --patch_mask_ratio"),
    "images of drop": (["--save_contrast_images", "3"], "--contrast drop makes none"),
    "another split": (["--rows_per_shard", "7"], "is not part of this run's plan"),
    "other columns": (["--extra_columns", "logits"], "this run would write"),
    "no such column": (
        ["--extra_columns", "logits,scores"],
        "--extra_columns scores: expected some of logits, logprobs, kl, entropy, rank",
    ),
    "another carry": (["--carry", "images"], "was written with --carry paths, this run has images"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_one_clear_message_and_exit_2(
    what: str, finished: tuple[Path, str, str], argv: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    flags, message = REFUSED[what]
    assert message in refusal(capfd, argv(*flags))


def test_a_directory_under_a_shard_s_name_is_refused_and_dry_run_says_so_too(
    argv: Callable[..., list[str]], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    taken = folder / "taken" / "data-r000000010-000000020.parquet"
    taken.mkdir(parents=True)
    for flags in (["--dry_run"], []):
        assert f"{taken} is a directory, and the shard" in refusal(capfd, argv("--output_dir", "taken", *flags))


def test_an_edited_source_is_refused_by_name(
    finished: tuple[Path, str, str], argv: Callable[..., list[str]], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = folder / "data.json"
    before, content = data.stat(), data.read_text()
    try:
        data.write_text(content.replace("A red cat", "A RED cat", 1))
        message = refusal(capfd, argv())
    finally:
        data.write_text(content)
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "data.json has changed since the shard " in message
    assert "data-r000000000-000000010.parquet was measured from it (mtime_ns was" in message


def test_a_signal_counts_the_shard_that_was_published_before_the_driver_heard_of_it(
    finished: tuple[Path, str, str], argv: Callable[..., list[str]], capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    shutil.copytree(finished[0], "stopped")
    late, *_, pending = sorted(Path("stopped").glob("*.parquet"))
    late.unlink()
    pending.unlink()

    def stopped(*_: object) -> NoReturn:
        shutil.copy2(finished[0] / late.name, late)
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "_measure", stopped)
    assert cli.run(argv("--output_dir", "stopped")) == 130
    assert "interrupted; 1 of 2 shards were done; run the same command to resume" in capfd.readouterr().err


def test_dry_run_lists_done_and_pending_and_starts_nothing(
    finished: tuple[Path, str, str], argv: Callable[..., list[str]], capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(execution, "execute", lambda *_: pytest.fail("work was started"))
    assert cli.run(argv("--dry_run")) == 0
    out = capfd.readouterr().out
    assert len(re.findall(r"^done +10 rows  ", out, re.MULTILINE)) == 6
    assert re.search(r"^done +6 +60 +6$", out, re.MULTILINE)
    assert "6 shards done, 0 pending" in out
    assert "of the rows that are done 8 of 60 are not ok (2 encode_error, 5 image_error" in out
    assert cli.run(argv("--output_dir", "fresh", "--dry_run")) == 0
    assert "0 shards done, 6 pending; this run would measure 6 shards with 60 rows" in capfd.readouterr().out
    assert not Path("fresh").exists()
