"""Other trainers and lmms-eval, in environments that `make test-peers` builds; elsewhere nothing is collected."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from peers.exported import Exported

collect_ignore_glob = [] if "CAL_PEERS" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from peers.exported import measure_and_export

    return measure_and_export(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from peers.exported import measure_and_export

    return measure_and_export(tmp_path_factory.mktemp("padded"), image_aspect_ratio="pad")


@pytest.fixture(scope="session")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Rows of `exported` with images of two tokens in place of six."""
    from peers.exported import measure_and_export

    return measure_and_export(tmp_path_factory.mktemp("coarse"), max_pixels=4 * 28**2)
