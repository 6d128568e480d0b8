"""Rows and models that want to hurt whoever reads them: refused with their reason, memory bounded, nothing fetched."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline import cli
from conftest import Family
from hostile_data import TAR_ROWS, write_hostile_rows, write_hostile_tar, write_line_bomb, write_member_bomb

pytestmark = pytest.mark.fault

_MEASURE = """
import json, resource, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore", module=r"PIL\\.")
outside, opened = sys.argv[3], []
def watch(event, arguments):
    if event == "open" and outside in str(arguments[0]):
        opened.append(str(arguments[0]))
    if event.startswith(("socket.connect", "urllib", "http")):
        opened.append(event)
import pyarrow.parquet as pq
import torch
from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.output.store import LocalStore
from cal_schemas.annotated import annotated_schema
from examples_of import measurement_spec
torch.set_num_threads(1)
model, encoder = load_reference(Path(sys.argv[1]), dtype="float32"), Encoder(load_processor(Path(sys.argv[1])))
store = LocalStore(output_dir=Path(sys.argv[2]))
store.prepare()
options = AnnotateOptions(schema=annotated_schema(carry="paths"), carry="paths", tokens_per_batch=512)
rows = {}
def measure(data, images):
    for shard in plan_shards([data], [images]):
        annotate_shard(shard, encoder=encoder, model=model, spec=measurement_spec(), store=store, options=options)
        for row in pq.read_table(store.path(shard.name)).to_pylist():
            rows[row["sample_id"]] = (row["status"], row["error"] or "")
measure(sys.argv[5], sys.argv[4])  # Harmless rows: what this loads belongs to the baseline.
rows.clear()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.addaudithook(watch)
for data in sys.argv[6:]:
    measure(data, sys.argv[4])
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
Path(sys.argv[2], "rows.json").write_text(json.dumps([rows, grown, opened]))
"""


@pytest.fixture(scope="module")
def visits() -> Iterator[tuple[str, list[str]]]:
    """A web server on loopback: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def measure(family: Family, folder: Path, images: Path, *data: Path) -> tuple[dict[str, list[str]], float, list[str]]:
    """Annotates the files in a process of its own: id -> status and error, MiB the process grew by, what it opened."""
    (folder / "harmless.jsonl").write_text(
        json.dumps({"id": 0, "image": "good.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]}) + "\n"
    )  # fmt: skip
    arguments = [family.directory, folder / "out", folder / "outside", images, folder / "harmless.jsonl", *data]
    path = [str(Path(__file__).parents[1]), *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}\n{_MEASURE}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    values: Any = json.loads((folder / "out" / "rows.json").read_text())
    return values[0], values[1], values[2]


def check(rows: dict[str, list[str]], expected: dict[str, tuple[str, str]]) -> None:
    assert list(rows) == list(expected)
    for name, (status, reason) in expected.items():
        assert rows[name][0] == status, (name, rows[name])
        assert reason in rows[name][1], (name, rows[name])


def test_hostile_rows_are_refused_with_their_reason_in_bounded_memory_and_nothing_else_is_opened(
    tmp_path: Path, llava: Family, visits: tuple[str, list[str]]
) -> None:
    url, asked = visits
    data, images, expected = write_hostile_rows(tmp_path, url)
    rows, grown, opened = measure(llava, tmp_path, images, data)
    check(rows, expected)
    assert grown < 500, f"{grown} MiB"
    assert opened == []
    assert asked == []


@pytest.mark.full
def test_hostile_members_of_an_archive_are_refused_with_their_reason_and_nothing_is_extracted(
    tmp_path: Path, llava: Family, visits: tuple[str, list[str]]
) -> None:
    _, images, _ = write_hostile_rows(tmp_path, visits[0])
    archive = write_hostile_tar(tmp_path / "a.tar", tmp_path / "outside" / "secret.png")
    before = sorted(path for path in tmp_path.rglob("*") if "out" not in path.parts)
    rows, grown, opened = measure(llava, tmp_path, images, archive)
    check(rows, TAR_ROWS)
    assert grown < 500, f"{grown} MiB"
    assert opened == []
    after = {path for path in tmp_path.rglob("*") if "out" not in path.relative_to(tmp_path).parts}
    assert after - set(before) == {tmp_path / "harmless.jsonl"}


@pytest.mark.full
def test_decompression_bombs_of_gigabytes_cost_megabytes(
    tmp_path: Path, llava: Family, visits: tuple[str, list[str]]
) -> None:
    _, images, _ = write_hostile_rows(tmp_path, visits[0])
    lines, members = write_line_bomb(tmp_path / "b.jsonl.zst", 1), write_member_bomb(tmp_path / "c.tar.gz", 1)
    assert lines.stat().st_size < 2**20
    assert members.stat().st_size < 2**22
    rows, grown, _ = measure(llava, tmp_path, images, lines, members)
    (bomb,) = (value for name, value in rows.items() if name.startswith("b-r"))
    assert bomb == ["encode_error", f"a line of {2**30 + 1} bytes; at most {64 * 2**20} are read"]
    assert rows["bomb"][0] == "encode_error"
    assert "member 'bomb.jpg' of 1073741824 bytes is too large" in rows["bomb"][1]
    assert rows["good"][0] == "ok"
    assert grown < 700, f"{grown} MiB"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_model_of_pickles_alone_is_refused_and_nothing_in_it_is_run(
    tmp_path: Path, llava: Family, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in llava.directory.iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    # A pickle that creates a file when it is loaded.
    (model / name).write_bytes(b"cposix\nmkdir\n(V" + str(tmp_path / "pwned").encode() + b"\ntR.")
    (tmp_path / "a.jsonl").write_text('{"id": 1, "conversations": [{"from": "gpt", "value": "a"}]}\n')
    code = cli.run(["--model_name_or_path", str(model), "--data_path", str(tmp_path / "a.jsonl"),
                    "--output_dir", str(tmp_path / "out"), "--gpus_per_worker", "0"])  # fmt: skip
    assert code == 2
    assert f"has no *.safetensors weights, only {name}, which may run code when loaded" in capfd.readouterr().err
    assert not (tmp_path / "pwned").exists()
