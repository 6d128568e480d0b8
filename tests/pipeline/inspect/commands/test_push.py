"""`cal-inspect push` against a Hub on loopback: what goes out, what does not, what is refused, what is resumed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import constants, snapshot_download

from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands import push as push_module
from cal_pipeline.inspect.tables.private_text import PrivateText
from cal_pipeline.output.verify import verify
from cal_schemas.annotated import AnnotatedRow, MeasuredSample, annotated_schema
from cal_schemas.errors import STATUS_OK, IncompleteError
from cal_schemas.metadata import Carry
from cal_schemas.opened import open_annotated
from cal_schemas.sample import ImageRef, sample_key
from cal_schemas.storage.locations import location
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.whole import write_plan
from cal_schemas.writer import ShardWriter
from conftest import Family
from examples_of import conversation, shard_metadata
from hub_server import READER, WRITER, HubServer
from inspected_data import parquet_directory
from tiny_models import sample_image

REPO = "org/name"
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>'", "ignore:.*raw bytes/text content:DeprecationWarning"
)
PASS_THROUGH = [
    pa.field("origin", pa.string()),
    pa.field("meta", pa.struct([("file", pa.string()), ("n", pa.int64())])),
]
SIGNED = "https://me:pass@host/a.png?X-Amz-Signature=abcdef"


@pytest.fixture
def hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """With a token that may write, and files sent by LFS."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return hub


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    sample_image(seed, (20, 12)).save(file, "PNG")
    return file.getvalue()


def annotated(folder: Path, shards: int = 3, *, carry: Carry = "images", planned: int | None = None) -> Path:
    """Shards of three rows, the last of which is not ok; sources, images and errors name folders of this machine."""
    out, images = folder / "annotated", folder / "my images"
    images.mkdir(parents=True, exist_ok=True)
    (out / ".cal" / "logs").mkdir(parents=True)
    (out / ".cal" / "logs" / "worker.log").write_text("a log")
    for shard in range(shards):
        path = out / "below" / f"part-{shard}.parquet"
        path.parent.mkdir(exist_ok=True)
        metadata = shard_metadata(carry=carry)
        source = replace(
            metadata.source, uri=str(folder / "raw" / f"{shard}.json"), data_path=str(folder / "raw"), num_rows=3,
            row_stop=3, image_folder=str(images),
        )  # fmt: skip
        schema = annotated_schema(carry=carry, pass_through=PASS_THROUGH)
        with ShardWriter(path, schema, replace(metadata, source=source)) as writer:
            for number in range(3 * shard, 3 * shard + 3):
                (images / f"{number}.png").write_bytes(encoded(number))
                ref = ImageRef(path=f"{number}.png", data=None if carry == "paths" else encoded(number))
                sample = conversation(
                    "<image>\nWhat?", f"It is {number}.", sample_id=f"{folder}/raw/1" if number == 1 else f"s{number}",
                    images=(ref,), pass_through={"origin": SIGNED if number == 0 else f"{images}/x.png",
                                                 "meta": {"file": f"{folder}/raw/{number}.json", "n": number}},
                )  # fmt: skip
                bad = number % 3 == 2
                deltas = np.array([number + 1 / 3, np.nan], np.float32)
                ids, positions = np.array([5, 6], np.int32), np.array([1, 2], np.int32)
                measured = MeasuredSample(label_ids=ids, label_positions=positions, delta_logits=deltas)
                error = f"image '{images}/{number}.png' is cut, see /var/log/other machine.log" if bad else None
                writer.write(
                    AnnotatedRow(
                        sample=sample,
                        sample_key=sample_key(sample),
                        measured=None if bad else measured,
                        error=error,
                        status="image_error" if bad else STATUS_OK,
                    )
                )
    write_plan(out, {f"below/part-{shard}.parquet": 3 for shard in range(planned or shards)})
    return out


def push(directory: Path, *more: str) -> int:
    return run(["push", str(directory), "--repo_id", REPO, *more])


def tree(hub: HubServer, name: str = REPO) -> dict[str, bytes]:
    repo = hub.repos["datasets", name]
    return repo.commits[repo.refs["main"]]


def table(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def no_row_of_this_machine(hub: HubServer, folder: Path) -> None:
    for name, data in tree(hub).items():
        rows = (
            str(table(data).to_pylist()) + str(table(data).schema.metadata) if name.endswith(".parquet") else str(data)
        )
        for secret in (str(folder), str(Path.home()) + "/", "abcdef", "me:pass", WRITER, "a log", "/var/log"):
            assert secret not in rows, (name, secret)


def test_shards_and_card_go_out_without_a_path_of_this_machine_and_load_as_they_are(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = annotated(tmp_path)
    assert push(folder, "--images", "embed", "--license", "cc-by-4.0") == 0
    said = capsys.readouterr().out
    assert said == f"{hub.endpoint}/datasets/org/name: 3 shards, 9 rows\n"
    files = tree(hub)
    shards = [f"below/part-{number}.parquet" for number in range(3)]
    assert sorted(files) == sorted([".gitattributes", ".cal/plan.json", "README.md", *shards])
    assert hub.repos["datasets", REPO].private
    no_row_of_this_machine(hub, tmp_path)
    for name in shards:
        was, now = pq.read_table(folder / name), table(files[name])
        same = [column for column in was.column_names if column not in ("sample_id", "error", "origin", "meta")]
        assert now.select(same).to_pylist() == was.select(same).to_pylist()
    first = table(files[shards[0]]).to_pylist()
    assert [row["sample_id"] for row in first] == ["s0", "1", "s2"]
    assert first[2]["error"] == "image '2.png' is cut, see other machine.log"
    assert (first[0]["origin"], first[1]["origin"]) == ("https://host/a.png", "x.png")
    assert first[1]["meta"] == {"file": "1.json", "n": 1}

    # In a process of its own, as datasets reads its endpoint when it is imported: the card's own lines, and all rows.
    lines = re.search(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
    assert lines
    script = lines[1] + (
        "import numpy, datasets\n"
        "everything = load_dataset('org/name', split='train', streaming=True)\n"
        "rows = list(everything)\n"
        "print(data.num_rows, len(rows), sorted(load_dataset('org/name')), row['images'][0].size)\n"
        "print([numpy.asarray(row['images'][0]).sum().item() for row in rows])\n"
        "print([None if not row['delta_logits'] else row['delta_logits'] for row in rows])\n"
    )
    environment = hub.environment(HF_TOKEN=WRITER, HF_HOME=str(tmp_path / "home"), PATH="/usr/bin:/bin")
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    counts, pixels, deltas = done.stdout.splitlines()[-3:]
    assert counts == "6 9 ['train'] (20, 12)"
    assert json.loads(pixels) == [int(np.asarray(sample_image(number, (20, 12))).sum()) for number in range(9)]
    expected = [[float(np.float32(number + 1 / 3)), None] if number % 3 < 2 else None for number in range(9)]
    assert deltas == str(expected)


def test_what_is_downloaded_again_is_read_verified_and_known_to_be_whole(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(annotated(tmp_path), "--images", "embed") == 0
    copy = tmp_path / "copy"
    snapshot_download(REPO, repo_type="dataset", local_dir=copy, endpoint=hub.endpoint, token=WRITER)
    opened = open_annotated(copy, partial=False)
    assert (opened.num_rows, opened.completeness.num_planned, opened.metadata[0].carry) == (9, 9, "images")
    assert verify(copy).ok
    there = open_annotated(location("hf://datasets/org/name"), partial=False)
    assert (there.num_rows, there.completeness.num_planned) == (9, 9)
    hub.commit(REPO, {"below/part-2.parquet": None})
    with pytest.raises(IncompleteError, match="1 of 3 planned shards"):
        open_annotated(cast(ObjectPath, location("hf://datasets/org/name")).pinned(), partial=False)
    (copy / "below" / "part-1.parquet").unlink()
    capsys.readouterr()
    assert run(["push", str(copy), "--repo_id", "org/other", "--images", "embed"]) == 2
    assert "1 of 3 planned shards with 3 of 9 rows are not there" in capsys.readouterr().err


def test_image_files_go_out_only_where_that_is_said(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = annotated(tmp_path / "a")
    assert push(folder) == 2
    assert "may not be yours to publish: --images embed publishes them, --images leave_out" in capsys.readouterr().err
    assert hub.repos == {}
    assert push(folder, "--images", "leave_out") == 0
    now = table(tree(hub)["below/part-0.parquet"])
    assert [row[0] for row in now["images"].to_pylist()] == [{"bytes": None, "path": f"{n}.png"} for n in range(3)]
    assert b"Image" not in now.schema.metadata[b"huggingface"]
    assert "The image files are not here" in tree(hub)["README.md"].decode()
    # By path: nobody's files go out unasked, and with the flag they do.
    folder = annotated(tmp_path / "b", carry="paths")
    assert run(["push", str(folder), "--repo_id", "org/names"]) == 0
    assert table(tree(hub, "org/names")["below/part-0.parquet"])["images"].to_pylist() == now["images"].to_pylist()
    assert run(["push", str(folder), "--repo_id", "org/files", "--images", "embed"]) == 0
    embedded = table(tree(hub, "org/files")["below/part-0.parquet"])
    assert [row[0]["bytes"] for row in embedded["images"].to_pylist()] == [encoded(number) for number in range(3)]
    assert b"Image" in embedded.schema.metadata[b"huggingface"]
    assert (
        embedded["sample_key"].to_pylist() == pq.read_table(folder / "below/part-0.parquet")["sample_key"].to_pylist()
    )
    (tmp_path / "b" / "my images" / "1.png").unlink()
    assert run(["push", str(folder), "--repo_id", "org/gone", "--images", "embed"]) == 2
    assert "1.png" in (said := capsys.readouterr().err)
    assert "publish without images: --images leave_out" in said


@pytest.mark.parametrize("carry", ["images", "none"])
def test_image_files_in_other_columns_of_the_source_are_not_published_unasked(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, carry: Carry
) -> None:
    webp = io.BytesIO()
    sample_image(3, (20, 12)).save(webp, "WEBP")
    thumb = {"bytes": encoded(2), "path": "t.png"}
    values: dict[str, Any] = {
        "thumb": thumb, "raw": [encoded(3), b"no image", webp.getvalue()], "digest": b"0" * 16,
        "url": ["data:image/png;base64,iVBORw0K", "data: none", "https://host/a.png"],
        "parts": [[("image", encoded(4))]],
    }  # fmt: skip
    feature = {"huggingface": json.dumps({"_type": "Image"})}
    fields = [
        pa.field("thumb", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), metadata=feature),
        pa.field("raw", pa.list_(pa.large_binary())), pa.field("digest", pa.binary(16)),
        pa.field("url", pa.list_(pa.string())), pa.field("parts", pa.list_(pa.map_(pa.string(), pa.binary()))),
    ]  # fmt: skip
    folder = tmp_path / "annotated"
    folder.mkdir()
    schema = annotated_schema(carry=carry, pass_through=fields)
    with ShardWriter(folder / "a.parquet", schema, shard_metadata(carry=carry)) as writer:
        sample = conversation("<image>\nWhat?", "It.", images=(ImageRef(data=encoded(1)),), pass_through=values)
        writer.write(
            AnnotatedRow(
                sample=sample, sample_key=sample_key(sample), measured=None, error="broken", status="image_error"
            )
        )
    flag = ["--partial"] if carry == "none" else ["--partial", "--images", "leave_out"]
    assert push(folder, *flag) == 0
    now = table(tree(hub)["a.parquet"])
    (row,) = now.to_pylist()
    assert {name: row[name] for name in values} == {
        "thumb": {"bytes": None, "path": "t.png"}, "raw": [None, b"no image", None], "digest": b"0" * 16,
        "url": [None, "data: none", "https://host/a.png"], "parts": [[("image", None)]],
    }  # fmt: skip
    assert b"Image" not in now.schema.metadata[b"huggingface"]
    assert (
        "the columns ['thumb', 'raw', 'digest', 'parts'] hold bytes: those of image files are left out" in caplog.text
    )
    if carry == "images":
        assert run(["push", str(folder), "--repo_id", "org/all", "--partial", "--images", "embed"]) == 0
        there = table(tree(hub, "org/all")["a.parquet"])
        assert {name: there[name].to_pylist()[0] for name in values} == values
        assert json.loads(there.schema.metadata[b"huggingface"])["info"]["features"]["thumb"] == {"_type": "Image"}


@pytest.mark.parametrize("fault", ["503", *(pytest.param(fault, marks=pytest.mark.full) for fault in ("403", "drop"))])
def test_an_interrupted_push_goes_on_where_it_was(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    monkeypatch.setattr(push_module, "_SHARDS_PER_COMMIT", 2)
    monkeypatch.setattr("time.sleep", lambda _: None)
    folder = annotated(tmp_path, 5)
    hub.where, hub.only = "/commit/", {"POST"}
    hub.faults.extend(["pass", "pass", *[fault] * 6])
    assert push(folder, "--images", "embed") == 2
    said = capsys.readouterr().err
    assert "uploading (Add shards, 4 of 5)" in said
    assert "Traceback" not in said
    assert sorted(tree(hub)) == [".cal/plan.json", ".gitattributes", "below/part-0.parquet", "below/part-1.parquet"]
    hub.faults.clear()
    uploads = sum(method == "PUT" for method, _, _ in hub.requests)
    assert push(folder, "--images", "embed") == 0
    assert sum(method == "PUT" for method, _, _ in hub.requests) - uploads == 1  # Two more were there already.
    assert len([name for name in tree(hub) if name.endswith(".parquet")]) == 5
    assert [message.split(" (cal")[0] for message in hub.repos["datasets", REPO].messages] == [
        "initial commit", "Begin", "Add shards, 2 of 5", "Add shards, 4 of 5", "Add shards, 5 of 5", "Describe them",
    ]  # fmt: skip
    before = len(hub.repos["datasets", REPO].commits)
    capsys.readouterr()
    assert push(folder, "--images", "embed") == 0
    assert capsys.readouterr().out.endswith("5 shards, 15 rows, as before\n")
    assert len(hub.repos["datasets", REPO].commits) == before


def test_what_is_not_whole_or_damaged_is_refused_before_anything_is_there(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = annotated(tmp_path, 2, planned=3)
    assert push(folder, "--images", "embed") == 2
    said = capsys.readouterr().err
    assert "1 of 3 planned shards with 3 of 9 rows are not there" in said
    assert said.rstrip().endswith("To publish what is there: --partial")
    whole = (folder / "below" / "part-1.parquet").read_bytes()
    # Where no pass over the numbers looks.
    column = pq.read_metadata(folder / "below" / "part-1.parquet").row_group(0).column(2)
    assert column.path_in_schema == "images.list.element.bytes"
    at = column.data_page_offset + column.total_compressed_size - 20
    (folder / "below" / "part-1.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert push(folder, "--images", "embed", "--partial") == 2
    assert "part-1.parquet" in capsys.readouterr().err
    assert sorted(tree(hub)) == [".gitattributes"]
    (folder / "below" / "part-1.parquet").write_bytes(whole)
    assert push(folder, "--images", "embed", "--partial") == 0
    assert "**Not whole**: 1 shard with 3 rows is missing." in tree(hub)["README.md"].decode()
    # Later, when the rest is there.
    whole_folder = annotated(tmp_path / "later", 3)
    for name in ("part-0.parquet", "part-1.parquet"):
        (whole_folder / "below" / name).write_bytes((folder / "below" / name).read_bytes())
    assert push(whole_folder, "--images", "embed") == 0
    assert "Not whole" not in tree(hub)["README.md"].decode()
    assert "below/part-2.parquet" in tree(hub)


def test_a_repository_with_something_else_is_left_alone(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = annotated(tmp_path / "a")
    for files, what in (
        ({"data.csv": "a"}, "it holds data.csv already"),
        ({".cal/plan.json": "[7]"}, "it holds a .cal/plan.json that is none already"),
        # What `hf upload` makes of a directory, its paths and all.
        (
            {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()},
            "below/part-1.parquet, below/part-2.parquet, which was not put there by cal-inspect push",
        ),
        ({"README.md": "---\nlicense: mit\n---\n# By hand\n"}, "it holds a README.md already"),
    ):
        hub.repos.clear()
        sha = hub.commit(REPO, files)
        hub.repo(REPO, private=True)
        assert push(folder, "--images", "embed") == 2
        assert what in capsys.readouterr().err
        assert hub.repos["datasets", REPO].refs["main"] == sha
    hub.repos.clear()
    hub.commit(REPO, {"README.md": "---\nlicense: mit\n---\n"})  # As the Hub's page makes it.
    assert push(folder, "--images", "embed") == 2
    assert "is public: --public publishes there" in capsys.readouterr().err
    assert push(folder, "--images", "embed", "--public") == 0
    hub.commit(REPO, {"LICENSE": "words", "README.md": tree(hub)["README.md"] + b"\nBy hand.\n"})
    assert push(folder, "--images", "embed", "--public") == 0
    assert tree(hub)["README.md"].endswith(b"By hand.\n")
    assert push(folder, "--images", "leave_out", "--public") == 2
    assert "another below/part-0.parquet (measured again, changed, or other --images)" in capsys.readouterr().err
    assert push(annotated(tmp_path / "b", 1), "--images", "embed", "--public") == 2
    assert "below/part-" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "more", "reason"),
    [
        ("", [], "takes a token that may write to org/name: `hf auth login`, or HF_TOKEN"),
        (READER, [], "this token may not"),
        ("hf_nobody", [], "the Hub does not know this token"),
        (WRITER, ["--repo_id", "name"], "expected ORG/NAME"),
        (WRITER, ["--repo_id", "org/na me"], "--repo_id 'org/na me'"),
        (WRITER, ["--repo_id", "a/b/c"], "--repo_id 'a/b/c'"),
        (WRITER, ["--images", "some"], "invalid choice"),
        (WRITER, ["--license", "my own"], 'does not take this card, see --license: {"errors": [{"message": "'),
    ],
)
def test_who_may_not_and_what_is_no_name_is_said_in_one_line(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str,
    more: list[str], reason: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    assert push(annotated(tmp_path, 1), "--images", "embed", *more) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if not line.startswith("WARNING")]
    assert reason in line
    assert hub.repos == {}
    assert not token or token not in said


def test_without_a_network_one_line_says_so(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    folder = annotated(tmp_path, 1)
    assert push(folder, "--images", "embed") == 2
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(folder, "--images", "embed") == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_the_licence_of_a_data_set_of_the_hub_is_looked_up(hub: HubServer, tmp_path: Path) -> None:
    folder = annotated(tmp_path, 1)
    path = folder / "below" / "part-0.parquet"
    had = pq.read_table(path)
    uri = b"hf://datasets/a/b@c/x.json"
    text = had.schema.metadata[b"cal.shard"].replace(str(tmp_path / "raw" / "0.json").encode(), uri)
    pq.write_table(had.replace_schema_metadata({**had.schema.metadata, b"cal.shard": text}), path)
    for name, source, licence, said in (
        ("org/none", None, "unknown", "**Not known.**"),
        ("org/silent", "words", "unknown", "**Not known.**"),
        ("org/known", "---\nlicense: cc-by-4.0\n---\nwords", "cc-by-4.0", "as the card of a/b says"),
    ):
        if source:
            hub.commit("a/b", {"README.md": source})
        assert run(["push", str(folder), "--repo_id", name, "--images", "embed"]) == 0
        card = tree(hub, name)["README.md"].decode()
        values = yaml.safe_load(card.split("---")[1])
        assert (values["license"], values["source_datasets"]) == (licence, ["a/b"])
        assert said in card
        assert "| rows from | `hf://datasets/a/b@c/x.json` |" in card


@pytest.mark.full
def test_no_card_outlives_what_it_describes_and_none_is_lost(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = annotated(tmp_path, 2, planned=3), annotated(tmp_path / "later", 3)
    hub.commit(REPO, {"README.md": "---\nlicense: mit\n---\n"})  # As the Hub's own page makes it.
    hub.repo(REPO, private=True)
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.where, hub.only = "/commit/", {"POST"}
    hub.faults.extend(["pass", "pass", "403"])
    assert push(folder, "--images", "embed", "--partial") == 2
    assert push(folder, "--images", "embed", "--partial") == 0
    assert b"**Not whole**" in tree(hub)["README.md"]
    for name in ("part-0.parquet", "part-1.parquet"):
        (whole / "below" / name).write_bytes((folder / "below" / name).read_bytes())
    hub.faults.extend(["pass", "pass", "403"])
    assert push(whole, "--images", "embed") == 2
    assert "README.md" not in tree(hub)
    assert push(whole, "--images", "embed") == 0
    assert b"Not whole" not in tree(hub)["README.md"]
    # A shard that was deleted there comes back, and what was written into the card by hand stays.
    hub.commit(REPO, {"below/part-1.parquet": None, "README.md": tree(hub)["README.md"] + b"By hand.\n"})
    assert push(whole, "--images", "embed") == 0
    assert "below/part-1.parquet" in tree(hub)
    assert tree(hub)["README.md"].endswith(b"By hand.\n")


def test_a_dry_run_draws_the_example_and_asks_nobody(
    llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = parquet_directory(llava, tmp_path, 4)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    card = tmp_path / "card"
    assert push(folder, "--images", "embed", "--dry_run", str(card), "--license", "mit") == 0
    assert capsys.readouterr().out == f"{card}: the card; nothing was published\n"
    assert sorted(path.name for path in card.iterdir()) == ["README.md", "example.png"]
    text = (card / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "mit"
    assert "| `ok` | 4 |" in text
    assert str(tmp_path) not in text
    assert (card / "example.png").read_bytes().startswith(b"\x89PNG")
    assert push(folder, "--images", "embed", "--dry_run", str(card)) == 2
    assert f"--dry_run {card} is there already; give a new directory" in capsys.readouterr().err


def test_a_licence_for_a_card_that_is_there_already_is_said_to_change_nothing(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = annotated(tmp_path)
    assert push(folder, "--images", "leave_out") == 0
    before = tree(hub)["README.md"]
    caplog.clear()
    assert push(folder, "--images", "leave_out", "--license", "mit") == 0
    assert tree(hub)["README.md"] == before
    assert caplog.messages == [
        f"{hub.endpoint}/datasets/org/name has its card, which stays as it is, licence and all: edit it there"
    ]


def test_the_same_command_again_has_nothing_to_warn_of(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = annotated(tmp_path)
    assert push(folder, "--images", "leave_out", "--license", "mit") == 0
    caplog.clear()
    assert push(folder, "--images", "leave_out", "--license", "mit") == 0
    assert caplog.messages == []


def test_the_same_shard_gives_the_same_bytes(hub: HubServer, tmp_path: Path) -> None:
    folder = annotated(tmp_path, 1)
    for name in ("org/one", "org/two"):
        assert run(["push", str(folder), "--repo_id", name, "--images", "embed"]) == 0
    one, two = (tree(hub, name)["below/part-0.parquet"] for name in ("org/one", "org/two"))
    assert one == two


def test_a_new_public_data_set_and_a_private_one_that_stays_so(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = annotated(tmp_path, 1)
    assert push(folder, "--images", "embed", "--public") == 0
    assert not hub.repos["datasets", REPO].private
    hub.repo("org/there", private=True)
    assert run(["push", str(folder), "--repo_id", "org/there", "--images", "embed", "--public"]) == 0
    assert hub.repos["datasets", "org/there"].private
    assert "org/there is private and stays so: its settings make it public" in caplog.messages


def test_a_sidecar_and_a_single_shard_without_rows_go_out(hub: HubServer, tmp_path: Path) -> None:
    metadata = replace(shard_metadata(carry="none"), source=replace(shard_metadata().source, num_rows=0, row_stop=0))
    with ShardWriter(tmp_path / "a.parquet", annotated_schema(carry="none"), metadata):
        pass
    assert push(tmp_path / "a.parquet") == 0
    assert table(tree(hub)["a.parquet"]).num_rows == 0
    assert "images and messages are in the source (a sidecar)" in tree(hub)["README.md"].decode()


TEXTS: dict[str, pa.Array] = {
    "large": pa.array(["{}/a.png", None], pa.large_string()),
    "view": pa.array(["see '{}/a b.png'", "x"], pa.string_view()),
    "dictionary": pa.array(["{}/a.png", "{}/a.png"]).dictionary_encode(),
    "list": pa.array([["{}", "{}x"], None]),
    "nested": pa.array(
        [[{"at": "file://{}/c", "n": None}], []], pa.list_(pa.struct([("at", pa.string()), ("n", pa.int8())]))
    ),
    "map": pa.array([[("k", "{}/a")], []], pa.map_(pa.string(), pa.string())),
    "tokens": pa.array(["hf_abcdefghijklmnopqrstuvwxyz", SIGNED]),
    "other": pa.array(["s3://bucket{}/a", "and{}/a"]),
}  # fmt: skip
CLEAN: dict[str, list[object]] = {
    "large": ["a.png", None], "view": ["see 'a b.png'", "x"], "dictionary": ["a.png", "a.png"],
    "list": [["", "{}x"], None], "nested": [[{"at": "c", "n": None}], []], "map": [[("k", "a")], []],
    "tokens": ["hf_\u2026", "https://host/a.png"], "other": ["s3://bucket{}/a", "and{}/a"],
}  # fmt: skip


@pytest.mark.parametrize("folder", ["/srv", "/srv/my (data)+é"])
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_every_kind_of_column_lose_folders_and_secrets(kind: str, folder: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(filled, value))
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return value.replace("{}", folder) if isinstance(value, str) else value

    source = replace(shard_metadata().source, uri=f"{folder}/a.json", data_path=f"{folder}/a.json")
    private = PrivateText([replace(shard_metadata(), source=source)], [])
    plain = TEXTS[kind].to_pylist()
    column = pa.array(filled(plain), TEXTS[kind].type)
    now = private.column(column)
    assert now.type == column.type
    assert filled(now.to_pylist()) == filled(CLEAN[kind])
    untouched = pa.array([1, 2])
    assert private.column(untouched) is untouched


def test_sources_of_one_name_stay_two_and_a_url_is_kept_without_its_secrets() -> None:
    first = shard_metadata().source
    uris = ["/home/a/x/data.json", "/home/a/y/data.json", "s3://bucket/key.json", "hf://datasets/a/b@c/d.parquet"]
    private = PrivateText(
        [replace(shard_metadata(), source=replace(first, uri=uri, data_path=uri)) for uri in uris], []
    )
    assert [private.uri(uri) for uri in uris] == ["x/data.json", "y/data.json", *uris[2:]]
    assert private.uri("/home/a/x/other.json") == "other.json"
