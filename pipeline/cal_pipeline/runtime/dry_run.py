"""Prints what a run of `cal-precompute` would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cal_pipeline.console import open_console
from cal_pipeline.runtime.faults import EXIT_DONE, EXIT_SHARDS_FAILED
from cal_pipeline.runtime.plan import Plan
from cal_pipeline.runtime.report import not_ok
from cal_pipeline.sources.shard import Shard
from cal_schemas.counted import counted

_LISTED = 20
"""Shards that are listed unless all are asked for."""


def print_plan(plan: Plan) -> int:
    """Lists what is done and pending, and how much that is; starts nothing, and returns the exit code."""
    console = open_console()
    pending = [shard for shard in plan.progress.pending if shard.problem is None]
    states = {"done": plan.progress.done, "pending": pending, "unreadable": plan.broken}
    listed = _listed(states) if not plan.config.verbose else states
    for state in ("done", "pending"):
        for shard in listed[state]:
            console.print(f"{state:8}{shard.num_rows:8} {'row ' if shard.num_rows == 1 else 'rows'}  {shard.name}")
    for shard in listed["unreadable"]:
        console.print(f"FAILED {shard.name}: {shard.problem}")
    console.print(f"{'':12}{'shards':>10}{'rows':>14}{'listed':>10}")
    for state, shards in states.items():
        if shards:
            num_rows = "?" if state == "unreadable" else f"{sum(shard.num_rows for shard in shards):,}"
            console.print(f"{state:12}{len(shards):10,}{num_rows:>14}{len(listed[state]):10,}")
    if listed != states:
        console.print("--verbose lists all")
    if bad := not_ok(plan.statuses_before()):
        console.print(f"of the rows that are done {bad}")
    rows = sum(shard.num_rows for shard in plan.todo)
    if plan.broken:
        state = f"{len(plan.broken)} cannot be read"
    elif plan.rows_fit:
        state = "Model, data and output are in order"
    else:
        state = "Model and output are in order, the data is not: no row looked at can be measured (see the warning)"
    console.print(
        f"{counted(len(plan.progress.done), 'shard')} done, {len(plan.progress.pending):,} pending; this run would "
        f"measure {counted(len(plan.todo), 'shard')} with {counted(rows, 'row')}. "
        f"{state}; nothing was started."
    )
    return EXIT_SHARDS_FAILED if plan.broken else EXIT_DONE


def _listed(states: Mapping[str, Sequence[Shard]]) -> dict[str, Sequence[Shard]]:
    """The first of each state, the later ones of which leave half of the room to those in front of them."""
    listed, room, others = {}, _LISTED, sum(map(len, states.values()))
    for state, shards in reversed([*states.items()]):
        others -= len(shards)
        listed[state] = shards[: room - min(others, room // 2)]
        room -= len(listed[state])
    return listed
