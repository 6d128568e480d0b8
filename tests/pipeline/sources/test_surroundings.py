"""What is ill around the data is no fault of a row, nor damage of a file: real file systems, real error numbers."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard
from PIL import Image

from cal_pipeline.sources.images import read_image_file
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.errors import ImageError, ShardError, SurroundingsError
from cal_schemas.sample import ImageRef
from ill_files import ill_files
from tiny_data import write_parquet

ILL = ("EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "ETIMEDOUT", "EACCES", "EPERM", "ENOTCONN", "EREMOTEIO")
LINE = '{"id": %6d, "conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]}\n'
READ_AN_IMAGE = """
import json, os, sys
from pathlib import Path
from cal_pipeline.sources.images import read_image_file
from cal_schemas.sample import ImageRef
folder, said = Path(sys.argv[1]), {}
for number in json.loads(sys.argv[2]):
    os.environ["ILL_ERRNO"] = str(number)
    try:
        read_image_file(ImageRef(path="a.png"), folder)
    except Exception as error:
        said[number] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""
DECODE_AN_IMAGE = """
import resource, sys
from pathlib import Path
from cal_pipeline.sources.images import decode_image
data = Path(sys.argv[1]).read_bytes()
decode_image(data)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))
try:
    decode_image(data)
except Exception as error:
    print(type(error).__name__, error)
"""
READ_A_SOURCE = """
import sys
from pathlib import Path
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
(shard,) = plan_shards([sys.argv[1]])
Path(sys.argv[2]).touch()
try:
    list(read_samples(shard))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"bytes")
    return folder


def printed(program: str, *arguments: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_image_that_the_file_system_does_not_hand_out_says_nothing_about_its_row(folder: Path) -> None:
    numbers = [getattr(errno, name) for name in ILL]
    environment = ill_files("/images/a.png", folder)
    said = json.loads(printed(READ_AN_IMAGE, str(folder), json.dumps(numbers), environment=environment))
    for number in numbers:
        assert said[str(number)] == [
            "SurroundingsError", f"image 'a.png' in {folder} cannot be read now: {os.strerror(number)}"
        ]  # fmt: skip


def test_a_process_without_a_free_file_descriptor_blames_no_row(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(SurroundingsError, match=r"cannot be read now: Too many open files"):
            read_image_file(ImageRef(path="a.png"), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_machine_without_memory_for_the_pixels_blames_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (9000, 9000)).save(path)
    said = printed(DECODE_AN_IMAGE, str(path), environment={"MALLOC_MMAP_THRESHOLD_": "65536"})
    assert said == "SurroundingsError images cannot be decoded now: MemoryError()\n"


@pytest.mark.parametrize("gone", ["moved", "unmounted"])
def test_an_image_is_missing_only_from_a_folder_that_is_there(folder: Path, gone: str) -> None:
    with pytest.raises(ImageError, match=r"'b\.png' is not a file in"):
        read_image_file(ImageRef(path="b.png"), folder)
    folder.rename(folder.with_name("elsewhere"))
    if gone == "unmounted":
        folder.mkdir()
    for name in ("a.png", "b.png"):
        with pytest.raises(
            SurroundingsError, match=rf"--image_folder {folder} is gone or empty \(moved, or unmounted\?\)"
        ):
            read_image_file(ImageRef(path=name), folder)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.zst", "a.jsonl.gz", "a.parquet", "a.tar"])
def test_a_source_that_cannot_be_read_for_a_while_is_not_called_damaged(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        write_parquet(path, count=3)
    else:
        write_source(path)
    said = printed(READ_A_SOURCE, str(path), str(tmp_path / "flag"),
                   environment=ill_files(name, tmp_path / "flag", errno.EACCES))  # fmt: skip
    assert said.startswith(f"SurroundingsError {path}: cannot be read now: "), said
    assert "Permission denied" in said
    assert not {"corrupt", "broken", "damaged"} & set(said.split())


def test_at_planning_such_a_file_is_listed_by_name_and_the_others_are_planned(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_source(tmp_path / "data" / name)
    program = """if True:
        import sys
        from cal_pipeline.sources.planning import plan_shards
        for shard in plan_shards([sys.argv[1]], list_broken=True):
            print(shard.name, shard.problem)
        try:
            plan_shards([sys.argv[1]])
        except Exception as error:
            print(type(error).__name__, error)
    """
    said = printed(program, str(tmp_path / "data"), environment=ill_files("/b.jsonl", tmp_path, errno.ESTALE))
    problem = f"{tmp_path}/data/b.jsonl: cannot be read now: {os.strerror(errno.ESTALE)}"
    assert said.splitlines() == ["a-r000000000-000000003 None", f"b {problem}", f"ConfigError {problem}"]


def test_a_folder_that_its_disk_does_not_list_is_no_smaller_data_set(tmp_path: Path) -> None:
    for name in ("a.jsonl", "deep/b.jsonl"):
        write_source(tmp_path / "data" / name)
    program = """if True:
        import sys
        from cal_pipeline.sources.data_paths import find_files
        try:
            print(find_files(sys.argv[1]))
        except Exception as error:
            print(type(error).__name__, error)
    """
    said = printed(program, str(tmp_path / "data"), environment=ill_files("/data/deep", tmp_path, errno.EIO))
    assert said == f"StoreError {tmp_path}/data/deep cannot be searched now: Input/output error\n"


def write_source(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [LINE % number for number in range(3)]
    text = (f"[{','.join(lines)}]" if path.suffix == ".json" else "".join(lines)).encode()
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("0.txt")
            info.size = 5
            archive.addfile(info, io.BytesIO(b"a cat"))
        return
    path.write_bytes({".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(text))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_source_overwritten_in_place_while_it_is_read_is_no_mix_of_two(tmp_path: Path, name: str) -> None:
    path, other = tmp_path / name, tmp_path / f"other-{name}"
    if name == "a.parquet":
        write_parquet(path, count=200)
        other.write_bytes(path.read_bytes())
    else:
        path.write_text("".join(LINE % number for number in range(20_000)))
        other.write_text("".join(LINE % (7 * number) for number in range(20_000)))
    (shard,) = plan_shards([str(path)], rows_per_shard=20_000)
    assert len(list(read_samples(shard))) == shard.num_rows
    samples = read_samples(shard)
    first = next(samples)
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    assert path.stat().st_size == shard.source.size
    with pytest.raises(ShardError, match=rf"{name}: changed since planning; .*\(mtime_ns was \d+, is \d+\)"):
        assert first.sample_id != [sample.sample_id for sample in samples][-1]
