"""A file system that fsspec opens and that cannot do everything: an archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import pytest

from cal_schemas.errors import StoreError
from cal_schemas.storage.fsspec_store import FsspecStore


def test_what_a_file_system_lacks_is_an_error_of_the_store_and_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("folder/x", "whole")
    store = FsspecStore(fsspec.filesystem("zip", fo=str(tmp_path / "archive.zip")), "zip")
    assert store.read_all("folder", "x") == b"whole"
    # fsspec's zip cannot delete: its own NotImplementedError reaches the user as an error of the store, by name.
    with pytest.raises(StoreError, match="zip://folder/x: NotImplementedError"):
        store.delete("folder", "x")
    with pytest.raises(StoreError, match=r"zip://folder/y: TypeError: .*'mode'"):
        store.upload("folder", "y", b"more", if_absent=True)
    assert "try 2" not in caplog.text
