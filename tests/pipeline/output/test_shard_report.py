from dataclasses import replace

import numpy as np
import pytest

from cal_pipeline.output.shard_report import ShardReport
from cal_schemas.annotated import AnnotatedRow
from cal_schemas.sample import ImageRef
from examples_of import MEASURED, conversation

IMAGE = ImageRef(path="a.png")


def test_rows_are_counted_by_status_and_deltas_only_beside_an_image() -> None:
    deltas = np.array([1.0, 1.5, 5.0, np.nan], np.float32)
    four = replace(
        MEASURED, label_ids=np.arange(4, dtype=np.int32), label_positions=np.arange(4, dtype=np.int32),
        delta_logits=deltas,
    )  # fmt: skip
    seen = conversation("<image>", "a", images=(IMAGE,), note="dark", unread=("score",))
    report = ShardReport(name="s")
    report.count([
        AnnotatedRow(sample=seen, sample_key="k", measured=four),
        AnnotatedRow(
            sample=conversation("q", "a", unread=("score", "x"), pass_through={"x": 1}), sample_key="k",
            measured=MEASURED,
        ),
        AnnotatedRow(sample=seen, sample_key="k", status="too_long", error="9 tokens"),
    ])  # fmt: skip
    assert (report.rows, report.statuses) == (3, {"ok": 2, "too_long": 1})
    assert report.label_tokens == 4 + 2
    # At most 1: one of the three that are defined; below 5: two of them.
    assert (report.image_label_tokens, report.at_most_alpha, report.below_beta) == (3, 1, 2)
    assert (report.noted, report.notes) == (2, ["s: dark", "s: dark"])
    assert (report.unread, report.unread_kept) == ({"score": 3, "x": 1}, {"x": 1})
    assert report.errors == ["s: too_long: 9 tokens"]


def test_only_the_first_errors_notes_and_keys_are_quoted() -> None:
    report = ShardReport(name="s")
    for number in range(101):
        sample = conversation("q", "a", note="dark", unread=(f"key{number}", "key0"))
        report.count([AnnotatedRow(sample=sample, sample_key="k", status="too_long", error="long")])
    assert (len(report.errors), len(report.notes), report.noted) == (10, 10, 101)
    assert len(report.unread) == 100
    assert report.unread["key0"] == 102


def test_seconds_of_a_stage_add_up_and_a_failure_adds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 10.0, 10.5, 20.0])
    monkeypatch.setattr("cal_pipeline.output.shard_report.time.monotonic", lambda: next(clock))
    report = ShardReport(name="s")
    for _ in range(2):
        with report.timed("forward"):
            pass
    with pytest.raises(ValueError, match="no"), report.timed("forward"):
        raise ValueError("no")
    assert report.seconds["forward"] == 2.5
