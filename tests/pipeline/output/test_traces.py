from pathlib import Path

from cal_pipeline.output.store import LocalStore
from cal_pipeline.output.traces import Traces


def test_a_refused_run_leaves_nothing_not_even_the_directory(tmp_path: Path) -> None:
    store = LocalStore(output_dir=tmp_path / "new" / "out")
    traces = Traces(store)
    store.prepare()
    (store.internal / "plan.json").write_text("[]")
    traces.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays_and_the_earlier_plan_comes_back(tmp_path: Path) -> None:
    store = LocalStore(output_dir=tmp_path / "out")
    store.prepare()
    (store.internal / "plan.json").write_text("[1]")
    (store.output_dir / "a.parquet").write_text("shard")
    traces = Traces(store)
    (store.internal / "plan.json").write_text("[2]")
    (store.logs / "worker.log").write_text("x")
    traces.remove()
    assert (store.internal / "plan.json").read_text() == "[1]"
    assert (store.output_dir / "a.parquet").exists()
    assert list(store.logs.iterdir()) == []
