import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cal_pipeline.sources import json as json_source
from cal_pipeline.sources.formats import FORMATS, RowRange
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.sample import Sample

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
SPACE = st.text(" \t\r\n", max_size=5)
ROW = '{"id": %d, "conversations": [{"from": "human", "value": "%s"}, {"from": "gpt", "value": "a"}]}'
IN_TEMPORARY_DIRECTORY = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def lines(count: int, text: str = "q") -> str:
    return "".join(ROW % (number, text) + "\n" for number in range(count))


def write(path: Path, text: str | bytes, frames: int = 1) -> Path:
    data = text.encode() if isinstance(text, str) else text
    if path.suffix == ".zst":
        size = len(data) // frames + 1
        data = b"".join(zstandard.compress(data[at : at + size]) for at in range(0, len(data), size))
    path.write_bytes(data)
    return path


def byte_range(start: int, stop: int) -> RowRange:
    return RowRange(row_start=0, row_stop=1, byte_start=start, byte_stop=stop)


def read_all(path: Path, data_format: str, rows_per_shard: int) -> list[Sample]:
    """Every virtual shard of the file, one after the other."""
    samples: list[Sample] = []
    for item in FORMATS[data_format].plan(path, rows_per_shard).ranges:
        of_range = list(FORMATS[data_format].read(path, item, "s"))
        assert len(of_range) == item.row_stop - item.row_start
        assert item.row_start == len(samples)
        samples += of_range
    return samples


def read_values(path: Path, data_format: str, rows_per_shard: int, chunk: int) -> list[tuple[str, Any]]:
    """The same before anything is made of the values: (row id, value)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_source, "_CHUNK", chunk)
        patch.setattr(json_source, "sample_from_json", lambda value, row_id: (row_id, value))
        return read_all(path, data_format, rows_per_shard)  # type: ignore[return-value]


def numbered(values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"s/{row}", value) for row, value in enumerate(values)]


@given(data=st.data(), values=st.lists(JSON, max_size=9), rows_per_shard=st.integers(1, 5), chunk=st.integers(1, 40))
@IN_TEMPORARY_DIRECTORY
def test_the_shards_of_an_array_are_exactly_its_elements_in_order(
    tmp_path: Path, data: st.DataObject, values: list[Any], rows_per_shard: int, chunk: int
) -> None:
    ascii_only, indent = data.draw(st.booleans()), data.draw(st.sampled_from([None, 1]))
    elements = [
        data.draw(SPACE) + json.dumps(value, ensure_ascii=ascii_only, indent=indent) + data.draw(SPACE)
        for value in values
    ]
    text = data.draw(SPACE) + "[" + (",".join(elements) or data.draw(SPACE)) + "]" + data.draw(SPACE)
    raw = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()
    name = data.draw(st.sampled_from(["a.json", "a.json.zst"]))
    path = write(tmp_path / name, raw, frames=data.draw(st.integers(1, 3)))
    assert read_values(path, "json", rows_per_shard, chunk) == numbered(json.loads(text))


@given(data=st.data(), values=st.lists(JSON, max_size=9), rows_per_shard=st.integers(1, 5))
@IN_TEMPORARY_DIRECTORY
def test_the_shards_of_a_jsonl_file_are_exactly_its_lines_in_order(
    tmp_path: Path, data: st.DataObject, values: list[Any], rows_per_shard: int
) -> None:
    ascii_only, newline = data.draw(st.booleans()), data.draw(st.sampled_from(["\n", "\r\n"]))
    blank = st.sampled_from(["", newline, " \t" + newline])
    text = "".join(data.draw(blank) + json.dumps(value, ensure_ascii=ascii_only) + newline for value in values)
    text = text.removesuffix(newline) if data.draw(st.booleans()) else text + data.draw(blank)
    raw = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode()
    name = data.draw(st.sampled_from(["a.jsonl", "a.jsonl.zst"]))
    path = write(tmp_path / name, raw, frames=data.draw(st.integers(1, 3)))
    assert read_values(path, "jsonl", rows_per_shard, 2**20) == numbered(values)


@pytest.mark.parametrize(
    "text", ["[1.5,2e-5,-3,1E+2]", '["a,]","\\"[",{"a":[1,{"b":"}"}]}]', "[NaN,-Infinity,true,null]"]
)
@pytest.mark.parametrize("chunk", range(1, 8))
def test_no_element_is_cut_where_a_read_ends(tmp_path: Path, text: str, chunk: int) -> None:
    values = read_values(write(tmp_path / "a.json", text), "json", 1, chunk)
    assert repr(values) == repr(numbered(json.loads(text)))  # NaN equals itself only in words.


def test_a_shard_begins_and_ends_at_its_own_rows_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id":1}\n{"id":2}\n{"id":3}\n')
    assert [(r.row_start, r.row_stop, r.byte_start, r.byte_stop) for r in FORMATS["jsonl"].plan(path, 2).ranges] == [
        (0, 2, 0, 18),
        (2, 3, 18, 27),
    ]


@pytest.mark.parametrize("text", ["[]", " [ \n] ", "\ufeff[]"])
def test_an_empty_array_and_an_empty_file_of_lines_have_no_shards(tmp_path: Path, text: str) -> None:
    assert FORMATS["json"].plan(write(tmp_path / "a.json", text), 4).ranges == []
    assert FORMATS["jsonl"].plan(write(tmp_path / "a.jsonl", "\n \r\n"), 4).ranges == []
    assert FORMATS["jsonl"].plan(write(tmp_path / "b.jsonl", ""), 4).ranges == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no '\[' at byte 0"),
        ("  3", r"no '\[' at byte 2"),
        ('{"id": 1}\n', r"an object, not '\[' \(one object per line is --data_format jsonl\), at byte 0"),
        ("[1, 2", "the array is cut off at byte 5"),
        ('[{"id": 1}, {"id"', "malformed JSON .* at byte 17"),
        ('[{"id": 1}, {"id": "abc', "malformed JSON .Unterminated string.* at byte 19"),
        ('[{"id": tru}]', r"malformed JSON \(Expecting value\) at byte 8"),
        ("[1, ]", r"malformed JSON \(Expecting value\) at byte 4"),
        ("[1 2]", "unexpected '2' at byte 3"),
        ("[1]\n[2]", r"'\[' after the end of the array at byte 4"),
        ("[] x", "'x' after the end of the array at byte 3"),
        ("[" + "7" * 5000 + "]", "an integer of too many digits at byte 1"),
        ("[" + "[" * 100_000, "nested too deeply at byte 1"),
        ('\ufeff["é" 2]', "unexpected '2' at byte 9"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_what_is_no_array_is_refused_naming_file_and_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, chunk: int
) -> None:
    monkeypatch.setattr(json_source, "_CHUNK", chunk)
    error = ShardError if text.lstrip("\ufeff").startswith("[") or not text else ConfigError
    with pytest.raises(error, match=rf"a\.json: {message}; expected a JSON array of samples"):
        FORMATS["json"].plan(write(tmp_path / "a.json", text), 4)


def test_a_malformed_array_is_refused_without_reading_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_source, "_CHUNK", 64)
    with (tmp_path / "a.json").open("wb") as file:
        file.write(b'[{"id": tru}, ')
        file.truncate(2**40)  # A sparse terabyte: reading on would never end.
    with pytest.raises(ShardError, match="at byte 8;"):
        FORMATS["json"].plan(tmp_path / "a.json", 4)


def test_a_malformed_line_keeps_its_place_as_a_sample_with_a_problem(tmp_path: Path) -> None:
    text = ROW % (0, "q") + '\n{"id": \n' + "7" * 5000 + "\n" + "[" * 100_000 + "\n3\n" + ROW % (5, "q")
    samples = read_all(write(tmp_path / "a.jsonl", text), "jsonl", 2)
    assert [sample.sample_id for sample in samples] == ["0", "s/1", "s/2", "s/3", "s/4", "5"]
    assert [sample.messages is None for sample in samples] == [False, True, True, True, True, False]
    problems = [sample.problem or "" for sample in samples]
    assert problems[1].startswith("malformed JSON line: Expecting value")
    assert "4300 digits" in problems[2]
    assert "recursion" in problems[3]
    assert problems[4] == "expected an object, got int"


@pytest.mark.parametrize(("data_format", "form"), [("jsonl", b"%s\n"), ("json", b"[%s]")])
@pytest.mark.parametrize("bad", [b"a\xffb", b"a\xed\xa0\x80b", b"a\\ud800b"])
def test_text_that_is_no_utf8_gets_a_replacement_character_and_a_note(
    tmp_path: Path, data_format: str, form: bytes, bad: bytes
) -> None:
    row = b'{"id": "i", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "%s"}]}' % bad
    (sample,) = read_all(write(tmp_path / "a.any", form % row), data_format, 4)
    assert sample.messages is not None
    assert sample.messages[1].content == "a\ufffdb"
    assert sample.problem is None
    assert sample.note == "characters that are not UTF-8 were replaced by U+FFFD in: turn 1"


def test_an_escaped_surrogate_pair_is_one_character_and_no_note(tmp_path: Path) -> None:
    (sample,) = read_all(write(tmp_path / "a.jsonl", ROW % (0, "\\ud83d\\ude00")), "jsonl", 4)
    assert sample.messages is not None
    assert (sample.messages[0].content, sample.note) == ("\U0001f600", None)


def test_control_characters_inside_strings_are_text(tmp_path: Path) -> None:
    (sample,) = read_all(write(tmp_path / "a.json", "[" + ROW % (0, "a\tb") + "]"), "json", 4)
    assert sample.messages is not None
    assert sample.messages[0].content == "a\tb"


@pytest.mark.parametrize("data_format", ["json", "jsonl"])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_cut_zst_is_one_clear_error(tmp_path: Path, data_format: str, keep: float) -> None:
    whole = zstandard.compress(lines(300).encode())
    path = tmp_path / f"a.{data_format}.zst"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ShardError, match=r"a\.jsonl?\.zst: broken compressed stream: Truncated compressed stream"):
        FORMATS["jsonl"].plan(path, 100)


def test_a_zst_that_is_none_or_has_flipped_bytes_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(lines(3).encode())
    with pytest.raises(ShardError, match="broken compressed stream"):
        FORMATS["jsonl"].plan(path, 100)
    flipped = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(lines(300).encode()))
    flipped[-10] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(ShardError, match="broken compressed stream"):
        FORMATS["jsonl"].plan(path, 100)
    with pytest.raises(ShardError, match=r"a\.jsonl\.zst: broken compressed stream"):
        list(FORMATS["jsonl"].read(path, byte_range(0, len(lines(300))), "s"))


def test_skippable_frames_between_data_are_skipped(tmp_path: Path) -> None:
    # As pzstd writes them: magic 0x184D2A50, length 4, content.
    skippable = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"abcd"
    first, second = zstandard.compress(lines(3).encode()), zstandard.compress(lines(2).encode())
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(skippable + first + skippable + second)
    assert [sample.sample_id for sample in read_all(path, "jsonl", 2)] == ["0", "1", "2", "0", "1"]


def test_a_range_that_is_no_longer_there_is_a_shard_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(2))
    with pytest.raises(ShardError, match=r"a\.jsonl: ends before byte 5000; it was changed after planning"):
        list(FORMATS["jsonl"].read(path, byte_range(0, 5000), "s"))
    with pytest.raises(ShardError, match=r"bytes 3-20 are no longer JSON"):
        list(FORMATS["json"].read(path, byte_range(3, 20), "s"))
    zst = write(tmp_path / "a.jsonl.zst", lines(2))
    with pytest.raises(ShardError, match="ends before byte 9000"):
        list(FORMATS["jsonl"].read(zst, byte_range(8000, 9000), "s"))


@pytest.mark.parametrize(("data_format", "form"), [("jsonl", "%s\n%s\n"), ("json", "[%s,%s]")])
@pytest.mark.parametrize(
    ("row", "named"),
    [
        ('{"image": "a.png"}', True),
        ('{"images": ["a.png"]}', True),
        ('{"image": null}', False),
        ('{"image": ""}', False),
        ('{"images": []}', False),
        ('{"conversations": [{"from": "human", "value": "what does \\"image\\" mean?"}]}', False),
    ],
)
def test_only_a_row_with_an_image_file_names_images(
    tmp_path: Path, data_format: str, form: str, row: str, named: bool
) -> None:
    path = write(tmp_path / "a.any", form % ("{}", row))
    assert FORMATS[data_format].plan(path, 4).images == ("named" if named else "unknown")


@pytest.mark.parametrize(("data_format", "form"), [("jsonl", "%s\n%s\n"), ("json", "[%s,%s]")])
def test_images_in_data_urls_are_counted_as_embedded(tmp_path: Path, data_format: str, form: str) -> None:
    row = '{"image": "data:image/png;base64,iVBORw0KGgo="}'
    plan = FORMATS[data_format].plan(write(tmp_path / "a.any", form % ("{}", row)), 4)
    assert plan.images != "named"
    assert len(row) <= plan.ranges[0].image_bytes <= len(row) + 1
    without = FORMATS[data_format].plan(write(tmp_path / "b.any", form % ("{}", "{}")), 4)
    assert without.ranges[0].image_bytes == 0


_PEAK = """
import sys, tracemalloc
from pathlib import Path
from cal_pipeline.sources import json as json_source
from cal_pipeline.sources.formats import FORMATS
json_source._CHUNK = 2**16  # So that the small file fills it, too.
tracemalloc.start()
path, data_format = Path(sys.argv[1]), sys.argv[2]
last = FORMATS[data_format].plan(path, 1000).ranges[-1]
for _ in FORMATS[data_format].read(path, last, "s"):
    pass
print(last.row_stop, tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("data_format", ["json", "jsonl"])
def test_planning_ten_times_the_rows_takes_no_more_memory(tmp_path: Path, data_format: str) -> None:
    peaks = []
    for count in (4_000, 40_000):
        text = lines(count)
        if data_format == "json":
            text = "[" + text.replace("\n", ",").removesuffix(",") + "]"
        path = write(tmp_path / f"{count}.{data_format}", text)
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, path, data_format], capture_output=True, text=True, check=True
        )
        rows, peak = map(int, done.stdout.split())
        assert rows == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 2**18  # Of 4 MB more input; the list of ranges may grow.
