import gzip
import io
import json
import logging
import math
import random
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cal_pipeline.sources import webdataset
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.reading import DamagedError
from cal_pipeline.sources.shard import limit_rows, read_samples, sample_rows
from cal_pipeline.sources.tar_reader import TarStream
from cal_pipeline.sources.webdataset import plan_file, read_rows
from cal_schemas.errors import ShardError
from cal_schemas.sample import Sample, sample_key

NAMES = st.text(st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=150)
CHAT = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
Members = Iterable[tuple[str, bytes | str | dict[str, Any] | list[Any]]]


def tar_bytes(members: Members, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tar_format) as archive:
        for name, value in members:
            data = json.dumps(value).encode() if isinstance(value, dict | list) else value
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def write(path: Path, members: Members, tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = tar_bytes(members, tar_format)
    path.write_bytes(
        zstandard.compress(data)
        if path.suffix == ".zst"
        else gzip.compress(data)
        if path.suffix in (".gz", ".tgz")
        else data
    )
    return path


def read_all(path: Path, rows_per_shard: int = 1000) -> list[Sample]:
    """Every virtual shard of the archive, one after the other."""
    samples: list[Sample] = []
    for item in plan_file(path, rows_per_shard).ranges:
        of_range = list(read_rows(path, item))
        assert (item.row_start, item.row_stop) == (len(samples), len(samples) + len(of_range))
        samples += of_range
    return samples


def one(tmp_path: Path, members: Members) -> Sample:
    (sample,) = read_all(write(tmp_path / "one.tar", members))
    return sample


def words(sample: Sample) -> list[str]:
    assert sample.messages is not None, sample.problem
    return [turn.content for turn in sample.messages]


def image_data(sample: Sample) -> list[bytes | None]:
    return [image.data for image in sample.images]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst"])
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_shards_of_an_archive_are_exactly_its_samples_in_order(tmp_path: Path, name: str, tar_format: int) -> None:
    members = [
        pair for n in range(7) for pair in ((f"d/{n:03d}.jpg", b"p" * (n * 300)), (f"d/{n:03d}.txt", f"cat {n}"))
    ]
    path = write(tmp_path / name, members, tar_format)
    for rows_per_shard in (1, 3, 100):
        samples = read_all(path, rows_per_shard)
        assert [sample.sample_id for sample in samples] == [f"d/{n:03d}" for n in range(7)]
        assert [words(sample) for sample in samples] == [["<image>", f"cat {n}"] for n in range(7)]
        assert [image_data(sample) for sample in samples] == [[b"p" * (n * 300)] for n in range(7)]


@given(
    groups=st.lists(
        st.tuples(NAMES,
                  st.binary(max_size=1500), st.text(max_size=20)),
        unique_by=lambda group: group[0], max_size=6,
    ),
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), rows_per_shard=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_and_bytes_come_out_as_they_went_in(
    tmp_path: Path, groups: list[tuple[str, bytes, str]], tar_format: int, rows_per_shard: int
) -> None:
    groups = [group for group in groups if not (group[0].startswith("__") and group[0].endswith("__"))]
    members = [pair for key, data, text in groups for pair in ((f"x/{key}.png", data), (f"x/{key}.txt", text))]
    samples = read_all(write(tmp_path / "a.tar", members, tar_format), rows_per_shard)
    assert [sample.sample_id for sample in samples] == [f"x/{key}" for key, _, _ in groups]
    assert [image_data(sample)[0] for sample in samples] == [data for _, data, _ in groups]
    expected = [text.removeprefix("\ufeff").strip() for _, _, text in groups]
    assert [words(sample)[1] for sample in samples] == expected


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ({"conversations": CHAT}, ["<image>\nq", "a"]),
        ({"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "b"}]},
         ["<image>", "b"]),
        (CHAT, ["<image>\nq", "a"]),
        ({"caption": " A cat "}, ["<image>", " A cat "]),
        ({"text": "A dog"}, ["<image>", "A dog"]),
        ({"caption": "A cat", "text": "A dog", "url": "http://x/y.jpg", "width": 3}, ["<image>", "A cat"]),
    ],
)  # fmt: skip
def test_json_holds_a_conversation_or_a_caption(tmp_path: Path, value: Any, turns: list[str]) -> None:
    assert words(one(tmp_path, [("a.jpg", b"p"), ("a.json", value)])) == turns


def test_a_text_file_is_the_caption_without_its_line_end_and_a_conversation_goes_before_it(tmp_path: Path) -> None:
    assert words(one(tmp_path, [("a.txt", "\ufeffA cat.\r\n"), ("a.jpg", b"p")])) == ["<image>", "A cat."]
    assert words(one(tmp_path, [("a.jpg", b"p"), ("a.txt", "no"), ("a.json", {"conversations": CHAT})]))[1] == "a"
    # img2dataset writes both; its JSON is about the image.
    assert words(one(tmp_path, [("a.jpg", b"p"), ("a.json", {"caption": None}), ("a.txt", "yes")]))[1] == "yes"


def test_images_of_one_key_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    members = [(f"a.{n}.jpg", f"{n}") for n in (10, 2, 0)] + [("a.png", "first"), ("a.txt", "t")]
    sample = one(tmp_path, members)
    assert image_data(sample) == [b"first", b"0", b"2", b"10"]
    assert words(sample)[0] == "<image>\n<image>\n<image>\n<image>"
    assert [image.path for image in sample.images] == ["a.png", "a.0.jpg", "a.2.jpg", "a.10.jpg"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.1.jpg", "a.0.jpg"], [b"1", b"0"]),
        (["1.jpg", "0.jpg", "1.jpg"], [b"1", b"0", b"1"]),
        (["d/a.0.jpg"], [b"0"]),
        ("./d/a.mask.png", [b"m"]),
        (["coco/x.jpg", "coco/y.jpg"], [b"0", b"1"]),
    ],
)
def test_json_says_which_images_and_in_which_order(tmp_path: Path, names: Any, expected: list[bytes]) -> None:
    key = "images" if isinstance(names, list) else "image"
    members = [("d/a.0.jpg", b"0"), ("d/a.1.jpg", b"1"), ("d/a.mask.png", b"m"),
               ("d/a.json", {key: names, "caption": "c"})]  # fmt: skip
    assert image_data(one(tmp_path, members)) == expected


def test_json_that_names_two_images_for_one_is_refused_and_empty_keys_name_none(tmp_path: Path) -> None:
    def named(**keys: Any) -> Sample:
        return one(tmp_path, [("a.0.jpg", b"0"), ("a.1.jpg", b"1"), ("a.json", {"caption": "c", **keys})])

    assert "other images in 'images' than in 'image'" in (named(image="0.jpg", images=["1.jpg"]).problem or "")
    assert image_data(named(image="1.jpg", images=["1.jpg"])) == [b"1"]
    assert image_data(named(image=math.nan, images=[])) == [b"0", b"1"]
    assert words(named(caption="", text="t"))[1] == "t"


@pytest.mark.parametrize("url", ["data:image/png;base64,cQ==", "data:;base64,"])
def test_an_image_inside_the_json_never_gives_way_to_a_member_in_silence(tmp_path: Path, url: str) -> None:
    def both(*urls: str) -> Sample:
        return one(tmp_path, [("a.jpg", b"p"), ("a.json", {"images": urls, "caption": "c"})])

    for urls in ([url], [url, "a.jpg"], ["data:;base64,cA==", "a.jpg"]):
        assert "'a'.json has images in data: URLs, and the archive others" in (both(*urls).problem or "")
    assert image_data(both("data:;base64,cA==")) == [b"p"]
    assert image_data(one(tmp_path, [("a.json", {"image": url, "caption": "c"})])) in ([b"q"], [b""])


def test_names_of_images_that_are_not_in_the_archive_are_paths_below_the_image_folder(tmp_path: Path) -> None:
    sample = one(tmp_path, [("a.json", {"image": "coco/1.jpg", "conversations": CHAT})])
    assert [(image.data, image.path) for image in sample.images] == [(None, "coco/1.jpg")]


def test_a_key_with_text_alone_is_a_text_only_sample(tmp_path: Path) -> None:
    sample = one(tmp_path, [("a.txt", "Hello.")])
    assert (sample.images, words(sample)) == ((), ["", "Hello."])


PROBLEMS: dict[str, tuple[Members, str]] = {
    "no text": ([("a.jpg", b"p")], "no conversation: neither messages, conversations, text nor caption is set"),
    "no caption": ([("a.jpg", b"p"), ("a.json", {"url": "x"})], "no conversation"),
    "malformed": ([("a.jpg", b"p"), ("a.json", '{"id": ')], "malformed JSON in 'a'.json: Expecting value"),
    "key twice": ([("a.jpg", b"p"), ("a.json", '{"image": "x", "image": "0.jpg", "text": "A"}')], "'image' twice: 'x'"),
    "deep": ([("a.json", "[" * 100_000)], "malformed JSON in 'a'.json: maximum recursion"),
    "scalar": ([("a.json", "3")], "'a'.json holds int; expected an object"),
    "caption type": ([("a.jpg", b"p"), ("a.json", {"caption": 3})], "'caption' is int; expected text"),
    "bad turns": ([("a.jpg", b"p"), ("a.json", {"conversations": [{"from": "robot", "value": ""}]})], "role 'robot'"),
    "twice": ([("a.jpg", b"p"), ("a.txt", "t"), ("a.jpg", b"q")], "two members are named 'a.jpg'"),
    "one place": ([("a.0.jpg", b"p"), ("a.0.png", b"q"), ("a.txt", "t")], "'a.0.jpg' and 'a.0.png' are two images"),
    "absent": ([("a.0.jpg", b"p"), ("a.json", {"images": ["0.jpg", "1.jpg"], "caption": "c"})], "'1.jpg' is none of"),
    "too few": ([("a.0.jpg", b"p"), ("a.json", {"images": ["x", "y"], "caption": "c"})], "names 2 images"),
    "image type": ([("a.jpg", b"p"), ("a.json", {"image": 7, "caption": "c"})], "image is int"),
    "dots": ([("a.b.jpg", b"p"), ("a.txt", "t")], "'a.b.jpg': a key ends at its first dot"),
    "video": ([("a.mp4", b"p"), ("a.txt", "t")], "'a.mp4' is a video; only images are known"),
    "video named": ([("a.json", {"video": "x.mp4", "conversations": CHAT})], "the row has 'video': a video"),
    "videos named": ([("a.json", {"videos": ["x.mp4"], "conversations": CHAT})], "the row has 'videos': a video"),
    "weighed": ([("a.json", [CHAT[0], {**CHAT[1], "weight": 0.5}])], "turn 1 has 'weight' 0.5"),
    "wide text": ([("a.jpg", b"p"), ("a.txt", "t".encode("utf-16"))], "member 'a.txt' is UTF-16 or UTF-32 text"),
    "wide JSON": ([("a.json", "{}".encode("utf-16-le"))], "member 'a.json' is UTF-16 or UTF-32 text"),
    "elsewhere": ([("a.json", {"messages": CHAT[1:], "img": "a.png"})], "no image is set, and 'img' holds 'a.png'"),
    "upwards": ([("../a.jpg", b"p"), ("../a.txt", "t")], "member name '../a.jpg' leaves the archive"),
    "inside out": ([("x/../../a.jpg", b"p"), ("x/../../a.txt", "t")], "'x/../../a.jpg' leaves the archive"),
    "absolute": ([("/etc/a.jpg", b"p"), ("/etc/a.txt", "t")], "member name '/etc/a.jpg' leaves the archive"),
}  # fmt: skip


def test_json_of_an_archive_says_what_json_of_a_file_says(tmp_path: Path) -> None:
    value = {"conversations": [CHAT[0], {**CHAT[1], "loss": 0}], "system": "Be brief.", "tools": [{"name": "look"}]}
    sample = one(tmp_path, [("a.jpg", b"p"), ("a.json", value)])
    assert words(sample) == ["Be brief.", "<image>\nq", "a"]
    assert [turn.supervised for turn in sample.messages or ()] == [True, True, False]
    assert sample.tools == [{"name": "look"}]


@pytest.mark.parametrize("what", PROBLEMS)
def test_what_makes_no_sample_keeps_its_place_and_says_why(tmp_path: Path, what: str) -> None:
    members, problem = PROBLEMS[what]
    good: Members = [("z.jpg", b"p"), ("z.txt", "t")]
    bad, after = read_all(write(tmp_path / "a.tar", [*members, *good]))
    assert bad.messages is None
    assert problem in (bad.problem or "")
    assert after.problem is None
    assert sample_key(bad)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_a_device_is_no_image(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("a.txt"))
    (sample,) = read_all(tmp_path / "a.tar")
    assert sample.problem == "member 'a.jpg' is a link or a device, not a file"


def test_directories_hidden_files_and_other_members_make_no_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", pax_headers={"comment": "made by hand"}) as archive:
        for name in ("./", "./x"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name in ("README", "list.csv", "__meta__.json", "./x/1.jpg", "./x/._1.jpg", "./x/1.cls", "./x/1.txt"):
            archive.addfile(tarfile.TarInfo(name))
    with caplog.at_level(logging.WARNING):
        samples = read_all(tmp_path / "a.tar")
    assert [(sample.sample_id, len(sample.images)) for sample in samples] == [("x/1", 1)]
    assert "1 keys have no image, .json or .txt and make no row; the first is of 'list.csv'" in caplog.text


@pytest.mark.parametrize(
    "names", [["a.jpg", "b.jpg", "a.txt", "b.txt"], ["a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt"]]
)
def test_a_key_in_two_places_fails_the_archive_instead_of_making_half_samples(tmp_path: Path, names: list[str]) -> None:
    path = write(tmp_path / "a.tar", [(name, "x") for name in names])
    with pytest.raises(ShardError, match=r"a\.tar: broken tar archive: key 'a' comes again at byte .*sorted by name"):
        plan_file(path, 10)


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert image_data(one(tmp_path, [("a.JPG", b"p"), ("a.TXT", "t")])) == [b"p"]


@pytest.mark.parametrize("where", ["text", "name"])
def test_what_is_no_utf8_is_replaced_with_a_note(tmp_path: Path, where: str) -> None:
    name = "a\udcff" if where == "name" else "a"
    sample = one(tmp_path, [(f"{name}.jpg", b"p"), (f"{name}.txt", b"caf\xe9" if where == "text" else "t")])
    if where == "text":
        assert words(sample)[1] == "caf\ufffd"
        assert "in: turn 1" in (sample.note or "")
    else:
        assert sample.sample_id == "a\ufffd"
        assert "id" in (sample.note or "")
    sample.sample_id.encode()
    assert sample_key(sample)


def members_of_three() -> Members:
    return [pair for n in range(3) for pair in ((f"{n}.jpg", b"p" * 700), (f"{n}.json", {"caption": f"c{n}"}))]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst"])
def test_an_archive_that_is_cut_anywhere_is_a_shard_error(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, members_of_three())
    whole = path.read_bytes()
    step = 97 if name == "a.tar" else 13
    data_end = 512 * (3 * (1 + 2 + 1 + 1))
    for keep in range(0, data_end if name == "a.tar" else len(whole), step):
        path.write_bytes(whole[:keep])
        with pytest.raises(ShardError, match=r"broken tar archive: "):
            plan_file(path, 2)


def test_an_archive_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", members_of_three())
    path.write_bytes(path.read_bytes()[: 512 * 5])
    with pytest.raises(ShardError, match="cut off at byte 2560: the end-of-archive mark is missing"):
        plan_file(path, 2)


def test_a_damaged_header_in_mid_archive_does_not_pass_for_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", members_of_three())
    data = bytearray(path.read_bytes())
    data[512 * 5 + 3] ^= 1
    path.write_bytes(data)
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 2  # What the standard library makes of it: no error.
    with pytest.raises(ShardError, match="bad header at byte 2560 "):
        plan_file(path, 2)


def test_archives_joined_end_to_end_are_refused_instead_of_read_in_part(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", members_of_three())
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ShardError, match="more data after the end-of-archive mark at byte"):
        plan_file(path, 2)


@pytest.mark.parametrize("data", [b"", b"hello" * 200, b"\x89PNG" + b"\0" * 2000])
def test_what_is_no_archive_is_a_shard_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"a\.tar: broken tar archive"):
        plan_file(tmp_path / "a.tar", 2)


def extended(kind: bytes, size: int, data: bytes = b"") -> bytes:
    info = tarfile.TarInfo("h")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + data.ljust(-(-len(data) // 512) * 512, b"\0")


BAD_HEADERS: dict[str, tuple[bytes, str]] = {
    "long name of a terabyte": (extended(tarfile.GNUTYPE_LONGNAME, 2**40), "extended header of 1099511627776 bytes"),
    "pax of a gigabyte": (extended(tarfile.XHDTYPE, 2**30), "extended header of 1073741824 bytes"),
    "pax of no records": (extended(tarfile.XHDTYPE, 9, b"999 path="), "bad extended header at byte 0"),
    "pax of nonsense": (extended(tarfile.XHDTYPE, 9, b"x" * 9), "bad extended header at byte 0"),
    "pax that stands still": (extended(tarfile.XHDTYPE, 9, b"0 a=b\n  \n"), "bad extended header at byte 0"),
    "pax with a bad size": (extended(tarfile.XHDTYPE, 14, b"14 size=-4096\n") + extended(b"0", 0), "a size of -4096"),
    "sparse": (extended(tarfile.GNUTYPE_SPARSE, 0), "is a sparse file"),
    "sparse by pax": (extended(tarfile.XHDTYPE, 22, b"22 GNU.sparse.major=1\n"), "is a sparse file"),
    "one name for all": (extended(tarfile.XGLTYPE, 11, b"11 path=../\n"[:11]), "names all following members alike"),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_hostile_headers_are_refused_without_allocating_what_they_claim(tmp_path: Path, what: str) -> None:
    header, message = BAD_HEADERS[what]
    (tmp_path / "a.tar").write_bytes(header + b"\0" * 1024)
    tracemalloc.start()
    with pytest.raises(ShardError, match=message):
        plan_file(tmp_path / "a.tar", 2)
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


@given(st.binary(max_size=1600))
@settings(deadline=None, max_examples=200)
def test_whatever_the_bytes_the_answer_is_members_or_damage(junk: bytes) -> None:
    good = tar_bytes([("a.jpg", b"p"), ("a.txt", "t")])
    for data in (junk, junk + good, good[:512] + junk + good[512:]):
        try:
            list(TarStream(io.BytesIO(data)).members())
        except DamagedError as error:
            assert "byte" in str(error)  # noqa: PT017 - either outcome is right


def test_a_member_too_large_to_hold_is_not_read_and_its_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 1000)
    monkeypatch.setattr(webdataset, "MAX_ROW_IMAGE_BYTES", 2500)
    members: Members = [("a.jpg", b"p" * 1001), ("a.txt", "t"), ("b.jpg", b"p" * 1000), ("b.txt", "t"),
                        *[(f"c.{n}.jpg", b"p" * 900) for n in range(3)], ("c.txt", "t")]  # fmt: skip
    first, second, third = read_all(write(tmp_path / "a.tar", members))
    assert "member 'a.jpg' of 1001 bytes is too large" in (first.problem or "")
    assert second.problem is None
    assert "member 'c.2.jpg' of 900 bytes is too large" in (third.problem or "")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.zst"])
def test_planning_and_reading_hold_one_sample_at_a_time(tmp_path: Path, name: str) -> None:
    peaks, noise = [], random.Random(0)
    for count in (4, 40):
        path = write(
            tmp_path / name,
            [pair for n in range(count) for pair in ((f"{n}.jpg", noise.randbytes(500_000)), (f"{n}.txt", "t"))],
        )
        tracemalloc.start()
        (item,) = plan_file(path, 1000).ranges
        assert sum(1 for _ in read_rows(path, item)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**22  # Of 18 MB more input.


def test_a_plan_over_archives_names_ranges_counts_images_and_can_be_limited_and_sampled(tmp_path: Path) -> None:
    for number in range(3):
        members = [pair for n in range(5) for pair in ((f"{n}.jpg", b"p" * 100), (f"{n}.txt", f"{number}.{n}"))]
        write(tmp_path / f"s-{number:03d}.tar", members)
    plan = plan_shards([str(tmp_path)], rows_per_shard=3)
    assert [shard.name for shard in plan][:2] == ["s-000-r000000000-000000003", "s-000-r000000003-000000005"]
    assert sum(shard.embedded_bytes for shard in plan) == 1500
    assert plan == plan_shards([str(tmp_path)], rows_per_shard=3)
    limited = [words(sample)[1] for shard in limit_rows(plan, 7) for sample in read_samples(shard)]
    assert limited == [f"0.{n}" for n in range(5)] + ["1.0", "1.1"]
    drawn = sample_rows(plan, 0.5, seed=1)
    assert 0 < sum(len(list(read_samples(shard))) for shard in drawn) == sum(shard.num_rows for shard in drawn) < 15


def test_archives_mix_with_other_sources_and_may_have_any_name(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.dat", [("1.jpg", b"p"), ("1.txt", "t")])
    assert [shard.source.data_format for shard in plan_shards([str(archive)], data_format="webdataset")] == [
        "webdataset"
    ]
    write(tmp_path / "d/b.tar.zst", [("1.jpg", b"p"), ("1.txt", "t")])
    (tmp_path / "d/c.jsonl").write_text(json.dumps({"id": 1, "conversations": CHAT[1:]}) + "\n")
    plan = plan_shards([str(tmp_path / "d")])
    assert [sample.sample_id for shard in plan for sample in read_samples(shard)] == ["1", "1"]
