"""Reads what the end of a run says of rows that are not ok, and when there is none that is."""

import json
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.output.store import LocalStore
from cal_pipeline.runtime.report import RunReport, not_ok, print_report
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.annotated import annotated_schema
from cal_schemas.storage.locations import location
from conftest import Family
from examples_of import measurement_spec
from tiny_data import write_llava_json


def report(statuses: dict[str, int] | None, before: dict[str, int], **changed: Any) -> RunReport:
    shards = [] if statuses is None else [ShardReport(name="a", rows=sum(statuses.values()), statuses=statuses)]
    values: dict[str, Any] = {
        "run_id": "1", "config": {}, "fingerprint": "f", "started": "now", "seconds": 1.0, "workers": [], "devices": {},
        "seconds_to_first_worker": 0.0, "shards_done_before": 2, "statuses_before": before, "shards": shards,
        "failed": {}, "aborted": None, "retries": 0, "failed_starts": 0, "seconds_short": 0.0,
    }  # fmt: skip
    return RunReport(**{**values, **changed})


def test_rows_that_are_not_ok_are_counted_by_status_with_the_flag_that_measures_them_again() -> None:
    assert not_ok({"ok": 7}) == not_ok({}) == not_ok({"ok": 3, "too_long": 0}) == ""
    assert not_ok({"too_long": 2, "ok": 7, "image_error": 1}) == (
        "3 of 10 are not ok (1 image_error, 2 too_long): the column error says why, and --redo_status "
        "image_error,too_long measures them again"
    )
    assert "(1 of_tomorrow, 1 too_long)" in not_ok({"of_tomorrow": 1, "too_long": 1})
    assert "--redo_status too_long measures" in not_ok({"of_tomorrow": 1, "too_long": 1})


@pytest.mark.parametrize(
    ("statuses", "before", "expected"),
    [
        ({"ok": 1, "image_error": 9}, {}, False),
        ({"image_error": 9}, {}, True),
        ({"image_error": 9}, {"ok": 5}, True),
        ({"ok": 1}, {"image_error": 5}, False),
        (None, {"image_error": 5}, True),
        (None, {"image_error": 5, "ok": 1}, False),
        (None, {}, False),
        ({}, {}, False),
    ],
)
def test_no_row_is_ok_where_there_are_rows_of_this_run_or_else_before_it_and_all_failed(
    statuses: dict[str, int] | None, before: dict[str, int], expected: bool
) -> None:
    assert report(statuses, before).none_is_ok() is expected


def test_what_could_be_markup_or_an_emoji_stands_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report({"ok": 3, "[b]": 1}, {}, failed={"a[/b]:100:.jsonl": "no :smile:"}), "out:x:", Path(":fire:"))
    said = capsys.readouterr().out
    for text in ("cal-precompute: out:x:", "[b]", "FAILED a[/b]:100:.jsonl: no :smile:", "report: :fire:"):
        assert text in said


def test_a_resumed_run_names_the_rows_that_an_earlier_one_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report({"ok": 3}, {"ok": 2, "image_error": 4}), "out", None)
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING: of the rows in shards that were done before 4 of 6 are not ok (4 image_error)" in said
    print_report(report({"ok": 3}, {"ok": 6}), "out", None)
    assert "done before 4" not in " ".join(capsys.readouterr().out.split())


def test_nothing_to_do_names_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(None, {"ok": 2, "image_error": 4}), "out", None)
    assert "nothing to do: all 2 shards in out are done; of their rows 4 of 6 are not ok (4 image_error)" in (
        capsys.readouterr().out
    )
    print_report(report(None, {"ok": 6}), "out", None)
    assert capsys.readouterr().out == "nothing to do: all 2 shards in out are done\n"
    print_report(report(None, {"ok": 3}, shards_done_before=1), "out", None)
    assert capsys.readouterr().out == "nothing to do: the only shard in out is done\n"


def test_rows_with_a_note_are_counted_and_the_first_is_quoted() -> None:
    shard = ShardReport(name="a", rows=2, statuses={"ok": 2}, noted=2, notes=["x: dark", "y: dark"])
    assert "2 rows with a note in the column error; the first: x: dark" in report(None, {}, shards=[shard]).warnings()


def test_keys_that_nothing_was_made_of_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    shards = [
        ShardReport(name=name, rows=1, statuses={"ok": 1}, unread={"score": 1, name: 1}) for name in ("b", "a\x1b")
    ]
    left_out = "which are left out (so are all of JSON, CSV, archives and turns): 'a\\x1b', b, score\n"
    print_report(report(None, {}, shards=shards), "out", None)
    assert f"nothing was made of these keys, {left_out}" in capsys.readouterr().out
    # A column of Parquet, and the same key of JSON beside it, which has no columns.
    shards[0].unread_kept["score"] = 1
    print_report(report(None, {}, shards=shards), "out", None)
    printed = capsys.readouterr().out
    assert "nothing was made of these keys, which pass through as columns: score\n" in printed
    assert f"nothing was made of these keys, {left_out}" in printed
    many = ShardReport(name="a", rows=1, statuses={"ok": 1}, unread={f"key{number:02d}": 1 for number in range(33)})
    print_report(report(None, {}, shards=[many]), "out", None)
    assert "key28, key29 and 3 more\n" in capsys.readouterr().out
    print_report(report({"ok": 1}, {}), "out", None)
    assert "nothing was made" not in capsys.readouterr().out


def test_why_rows_were_measured_one_at_a_time_stands_once_at_the_end_and_in_the_report_of_every_shard(
    llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llava.encoder, "one_by_one", "its forward fails on two rows")
    data, images = write_llava_json(tmp_path, 2)
    store = LocalStore(output_dir=tmp_path / "out")
    store.prepare()
    options = AnnotateOptions(schema=annotated_schema(carry="paths"), carry="paths", tokens_per_batch=256)
    shards = [
        annotate_shard(
            shard, encoder=llava.encoder, model=llava.model, spec=measurement_spec(), store=store, options=options
        )
        for shard in plan_shards([str(data)], [str(images)], rows_per_shard=1)
    ]  # fmt: skip
    whole = report(None, {}, shards=shards)
    print_report(whole, "out", None)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("one at a time, which takes longer: its forward fails on two rows") == 1
    path = whole.write(location(tmp_path))
    assert path is not None
    assert [shard["one_by_one"] for shard in json.loads(path.read_text())["shards"]] == [
        "its forward fails on two rows"
    ] * 2
    assert not any("one at a time" in warning for warning in report({"ok": 3}, {}).warnings())
