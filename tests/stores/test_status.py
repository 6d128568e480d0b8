"""`--status` of a run that writes to an object store, from a machine that sees nothing but the store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cal_pipeline.output.heartbeat import Heartbeat
from cal_schemas.storage.object_path import ObjectPath


def test_status_is_told_from_the_store_alone_while_a_driver_lives_and_after_it_was_killed(
    bucket: ObjectPath, tmp_path: Path
) -> None:
    out = bucket / "out"
    (out / ".cal" / "plan.json").write_text(
        json.dumps([{"name": name, "source": {"num_rows": 4}} for name in ("a", "deep/b", "c")])
    )
    (out / "deep" / "b.parquet").write_bytes(b"PAR1")
    heartbeat = Heartbeat(out / ".cal", "2026-01-01T12:00:00+0000")
    heartbeat.say(shards_failed={"c": "burnt"}, statuses_before={}, statuses={"ok": 3, "too_long": 1})
    heartbeat.beat()

    def told(*flags: str) -> str:
        command = [Path(sys.executable).parent / "cal-precompute", "--status", str(out), *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    said = told()
    assert f"{out}: 1 of 3 shards is done, 1 to do, 1 failed" in said
    assert "is alive: said so " in said
    assert "1 of 4 rows is not ok: 1 too_long" in said
    assert "FAILED c: burnt" in said

    (path,) = (out / ".cal").glob("driver-*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "ticks": -1}))  # That process is no more.
    (driver,) = json.loads(told("--json"))["drivers"]
    assert not driver["alive"]
    assert driver["shards_failed"] == {"c": "burnt"}
