"""Tries where a Ray that this program starts may lie, and what its workers import."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cal_pipeline.runtime.ray_session import _ImportsOfDriver
from cal_pipeline.runtime.session_dir import session_dir
from cal_schemas.errors import ConfigError


@pytest.fixture
def short() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """Nothing can be made below it, by nobody."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "tmp"


def test_tmpdir_takes_the_place_of_a_tmp_that_cannot_be_written_to(
    closed: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    with session_dir(closed) as name:
        assert Path(name).parent == short
    assert not list(short.iterdir())


def test_no_place_at_all_is_one_line_with_both_reasons_and_the_way_out(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / "a-directory-of-many-characters"
    long.mkdir()
    for given, reason in ((closed, "Not a directory"), (long, "is longer than 26 characters")):
        monkeypatch.setenv("TMPDIR", str(given))
        with pytest.raises(ConfigError) as raised, session_dir(closed):
            pass
        said = str(raised.value)
        assert f"{closed} cannot be written to (Not a directory)" in said
        assert reason in said
        assert "Set TMPDIR" in said
        assert "\n" not in said


def test_a_path_of_tmpdir_at_its_limit_leaves_room_for_ray_s_sockets() -> None:
    deepest = "session_2026-11-28_07-15-21_515503_4194304/sockets/plasma_store"
    assert 26 + len("/cal-ray-abcdefgh/") + len(deepest) <= 107


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("searched", [True, False])
def test_workers_search_the_working_directory_only_if_the_driver_does(
    searched: bool, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path.cwd())
    others = [path for path in sys.path if path not in ("", here)]
    monkeypatch.setattr(sys, "path", (["", *others] if searched else others))
    asked = _ImportsOfDriver(local=local)
    asked._py_driver_sys_path.append(here)  # As ray.init does.
    given = list(asked._get_proto_job_config().py_driver_sys_path)
    assert (here in given) == searched
    worker = ["its own"]
    for path in given:
        worker.insert(0, path)
    assert worker == ([*([here] if searched else []), *(others if local else []), "its own"])
