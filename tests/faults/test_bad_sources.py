"""Sources that are damaged, go away, do not fit, or hold too many bad rows: the real program, its real exit code."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cal_pipeline import cli
from conftest import Family
from fault_job import Job
from tiny_data import write_parquet
from tiny_models import sample_image

LINE = '{"id": %d, "conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]}\n'
pytestmark = pytest.mark.fault


def write_tar(path: Path, count: int = 3) -> Path:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for number in range(count):
            image = io.BytesIO()
            sample_image(number).save(image, "JPEG")
            for suffix, data in (("jpg", image.getvalue()), ("txt", b"A cat on the table.\n")):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    data = target.getvalue()
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


def spoil_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def write_sources(folder: Path) -> dict[str, Path]:
    """One source of every kind, all of them good."""
    folder.mkdir(parents=True)
    lines = [LINE % number for number in range(3)]
    (folder / "lines.jsonl").write_text("".join(lines))
    (folder / "array.json").write_text(f"[{','.join(lines)}]")
    (folder / "stream.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))
    return {
        **{name: write_parquet(folder / f"{name}.parquet", count=3) for name in ("pages", "footer", "gone", "good")},
        **{name: write_tar(folder / f"{name}.tar") for name in ("archive", "tar")},
        "squeezed": write_tar(folder / "squeezed.tar.zst"),
        "lines": folder / "lines.jsonl",
        "stream": folder / "stream.jsonl.zst",
        "array": folder / "array.json",
    }


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> tuple[Job, dict[Path, bytes]]:
    """A finished run over whole and broken sources, and what the broken ones held before."""
    folder = tmp_path_factory.mktemp("damaged")
    sources = write_sources(folder / "data")
    broken = ("pages", "footer", "archive", "stream", "array", "gone")
    whole = {sources[name]: sources[name].read_bytes() for name in broken}
    spoil_pages(sources["pages"])
    for name in ("footer", "archive", "stream", "array"):
        cut(sources[name])
    sources["lines"].write_text(LINE % 0 + '{"id": \n' + LINE % 2)
    job = Job(model=llava.directory, data=folder / "data", output=folder / "out")
    process = job.start()
    # The plan is written before a worker starts, and a model takes longer to load than a file to vanish.
    job.wait_for(process, (job.output / ".cal" / "plan.json").exists, "the plan is there")
    sources["gone"].unlink()
    assert job.finish(process) == 1, job.said()
    return job, whole


@pytest.mark.slow
def test_damaged_sources_fail_by_name_and_the_rest_is_done(damaged: tuple[Job, dict[Path, bytes]]) -> None:
    job = damaged[0]
    said = job.said()
    assert "FAILED pages: " in said
    assert "pages.parquet: corrupt Parquet file" in said
    assert "footer.parquet: not a readable Parquet file" in said
    assert "archive.tar: broken tar archive: it is cut off at byte" in said
    assert "stream.jsonl.zst: broken compressed stream: Truncated compressed stream" in said
    assert "array.json: malformed JSON (" in said
    assert "gone.parquet: cannot be read now: No such file or directory" in said
    assert said.count("FAILED ") == 6
    assert said.count("shard pages, try") == 2
    assert job.done() == ["good", *(f"{name}-r000000000-000000003" for name in ("lines", "squeezed", "tar"))]
    assert job.staged() == []
    rows = {name: pq.read_table(job.output / f"{name}.parquet").to_pylist() for name in job.done()}
    bad = rows["lines-r000000000-000000003"][1]
    assert (bad["status"], bad["error"][:24]) == ("encode_error", "malformed JSON line: Exp")
    others = [row for part in rows.values() for row in part if row is not bad]
    assert {row["status"] for row in others} == {"ok"}
    assert rows["squeezed-r000000000-000000003"][0]["sample_id"] == "000000"
    assert rows["tar-r000000000-000000003"][2]["images"][0]["path"] == "000002.jpg"
    (path,) = (job.output / ".cal" / "reports").glob("*.json")
    report = json.loads(path.read_text())
    assert sorted(report["failed"]) == ["archive", "array", "footer", "gone", "pages", "stream"]


@pytest.mark.slow
@pytest.mark.full
def test_repaired_sources_are_done_by_the_next_run_and_finished_shards_stay(
    damaged: tuple[Job, dict[Path, bytes]],
) -> None:
    job, whole = damaged
    before = job.contents()
    assert len(before) == 4
    for path, content in whole.items():
        path.write_bytes(content)
    assert job.run() == 0, job.said()
    after = job.contents()
    assert len(after) == 10
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
@pytest.mark.full
def test_too_many_bad_rows_end_the_run_with_1_and_the_first_ten_errors_and_lose_nothing(
    tmp_path: Path, llava: Family
) -> None:
    (tmp_path / "data").mkdir()
    # Shards of 10 rows: the first is good, the second has 4 bad rows, the third has none but bad ones.
    lines = [LINE % n if n < 10 or 14 <= n < 20 or n >= 30 else f'{{"id": {n}}}\n' for n in range(60)]
    (tmp_path / "data" / "a.jsonl").write_text("".join(lines))
    job = Job(model=llava.directory, data=tmp_path / "data", output=tmp_path / "out",
              flags=("--rows_per_shard", "10", "--num_workers", "1"))  # fmt: skip
    assert job.run("--max_error_fraction", "0.2") == 1, job.said()
    said = job.said()
    assert "stopped: 14 of 30 rows so far are not ok (--max_error_fraction 0.2; 1 never stops)" in said
    assert "3 of 8 rows looked at cannot be measured; the first: 20: encode_error" in said
    assert said.count("encode_error: no conversation") == 10 + 1
    assert "10: encode_error: no conversation: neither messages" in said
    assert "and 4 more rows not ok" in said
    assert job.done() == [f"a-r{n:09d}-{n + 10:09d}" for n in (0, 10, 20)]
    assert job.staged() == []
    before = job.contents()
    assert job.run("--max_error_fraction", "0.2") == 0, job.said()
    assert "in shards that were done before 14 of 30 are not ok (14 encode_error)" in job.said()
    assert len(job.done()) == 6
    assert {name: job.contents()[name] for name in before} == before


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["x"], "picture": ["a.png"]}, "hold no text; expected one of messages"),
        ({"id": ["x"], "messages": [["hello"]]}, "which need a role"),
        ({"id": ["x"], "text": ["t"], "image": [3]}, "column 'image' has type int64"),
        ({"id": ["x"], "text": ["t"], "score": ["high"]}, "column 'score' is double in"),
    ],
)
def test_one_shard_of_a_wrong_schema_stops_the_run_before_work_with_2(
    tmp_path: Path, llava: Family, capfd: pytest.CaptureFixture[str], columns: dict[str, list[object]], message: str
) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / "data" / f"{name}.parquet", count=2)
    pq.write_table(pa.table(columns), tmp_path / "data" / "z.parquet")
    code = cli.run(["--model_name_or_path", str(llava.directory), "--data_path", str(tmp_path / "data"),
                    "--output_dir", str(tmp_path / "out"), "--gpus_per_worker", "0", "--dtype", "float32"])  # fmt: skip
    assert code == 2
    err = capfd.readouterr().err
    assert message in err
    assert "z.parquet" in err
    assert list((tmp_path / "out").glob("*.parquet")) == []
