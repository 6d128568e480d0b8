"""What a dry run prints of many shards: 20 of them, and how many there are."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from cal_pipeline.runtime.dry_run import print_plan
from cal_schemas.counted import counted


def planned(*, done: int, pending: int, broken: int, verbose: bool = False, rows_fit: bool = True) -> Any:
    def shards(state: str, count: int, problem: str | None = None) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(name=f"{state}{n}", num_rows=7, problem=problem) for n in range(count))

    waiting, failed = shards("pending", pending), shards("broken", broken, "cannot be read")
    return SimpleNamespace(
        config=SimpleNamespace(verbose=verbose), broken=failed, rows_fit=rows_fit, todo=waiting,
        statuses_before=Counter, progress=SimpleNamespace(done=shards("done", done), pending=(*waiting, *failed)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("done", "pending", "broken", "listed"),
    [
        (6, 0, 0, (6, 0, 0)),
        (1, 1, 0, (1, 1, 0)),
        (0, 20_000, 0, (0, 20, 0)),
        (20_000, 0, 0, (20, 0, 0)),
        (10_000, 10_000, 0, (10, 10, 0)),
        (10_000, 3, 0, (17, 3, 0)),
        (10_000, 10_000, 10_000, (5, 5, 10)),
        (3, 10_000, 1, (3, 16, 1)),
        (0, 0, 25, (0, 0, 20)),
    ],
)
def test_twenty_shards_are_listed_and_all_are_counted(
    done: int, pending: int, broken: int, listed: tuple[int, int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert print_plan(planned(done=done, pending=pending, broken=broken)) == bool(broken)
    out = capfd.readouterr().out
    lines = ["^done +7 rows  done", "^pending +7 rows  pending", "^FAILED broken"]
    assert tuple(len(re.findall(line, out, re.MULTILINE)) for line in lines) == listed
    for state, count, shown in zip(("done", "pending"), (done, pending), listed, strict=False):
        assert (f"{state:12}{count:10,}{7 * count:14,}{shown:10,}\n" in out) == (count > 0)
    assert ("--verbose lists all" in out) == (done + pending + broken > 20)
    done_now, measured = counted(done, "shard"), counted(pending, "shard")
    assert f"{done_now} done, {pending + broken:,} pending; this run would measure {measured} with" in out


def test_verbose_lists_all(capfd: pytest.CaptureFixture[str]) -> None:
    print_plan(planned(done=30, pending=40, broken=50, verbose=True))
    out = capfd.readouterr().out
    assert out.count(" 7 rows  ") == 70
    assert out.count("FAILED broken") == 50
    assert "--verbose" not in out


@pytest.mark.parametrize("rows_fit", [True, False])
def test_data_of_which_no_row_fits_is_not_called_in_order(rows_fit: bool, capfd: pytest.CaptureFixture[str]) -> None:
    print_plan(planned(done=0, pending=1, broken=0, rows_fit=rows_fit))
    out = capfd.readouterr().out
    assert ("Model, data and output are in order; nothing was started." in out) == rows_fit
    assert ("the data is not: no row looked at can be measured" in out) != rows_fit
