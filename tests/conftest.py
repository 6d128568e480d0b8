"""Session-wide tiny models; everything else is made in the test that needs it.

Imports what takes seconds where it is used: the process that only hands tests out to others needs none of it, and they
wait for it.
"""

from __future__ import annotations

# First: transformers looks once for what is installed.
import torchvision_for_tests.sitecustomize  # noqa: F401

# isort: split
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from cal_pipeline.encoding.encoder import Encoder
    from hub_server import HubServer

# A machine that others share is no failure of a property.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

RAY_AUTH_MODE = os.environ.get("RAY_AUTH_MODE")


def pytest_collection_finish() -> None:
    """No module may change what other tests' Rays are started with by being imported: a head that asks for a token."""
    if os.environ.get("RAY_AUTH_MODE") != RAY_AUTH_MODE:
        raise pytest.UsageError("a module set RAY_AUTH_MODE when it was imported; set it where the program begins")


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A tiny reference of one model family, loaded as the pipeline loads it."""

    name: str
    directory: Path
    model: Any
    encoder: Encoder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Builds a family once per session, on first use."""
    from cal_pipeline.encoding.encoder import Encoder
    from cal_pipeline.models.loading import load_processor, load_reference
    from mini_gemini_data import MINI_GEMINI
    from tiny_models import FAMILIES

    built: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in built:
            directory = tmp_path_factory.mktemp("models") / name
            (FAMILIES | MINI_GEMINI)[name](directory)
            model = load_reference(directory, dtype="float32")
            built[name] = Family(
                name=name, directory=directory, model=model, encoder=Encoder(load_processor(directory))
            )
        return built[name]

    return get


@pytest.fixture(scope="session")
def llava(family: Callable[[str], Family]) -> Family:
    """The tiny LLaVA that most tests use."""
    return family("llava")


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    # A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    # Two workers of pytest-xdist on two cores; and sums do not depend on the number of cores.
    torch.set_num_threads(1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 300 kB, which a test may resize.

    Only root may mount one (CI does): who runs the tests as somebody else goes without.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:  # Without the permission there is no disk to fill; a directory cannot stand for one.
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub of this test's own, to which this process and its children turn; the waits between tries are short."""
    from huggingface_hub import close_session, constants

    from cal_schemas.storage import factory, hf
    from hub_server import HubServer

    with HubServer(page_size=3) as server:
        for name, value in server.environment(HF_HUB_CACHE=str(tmp_path / "hub-cache")).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
        monkeypatch.setattr(hf, "_FIRST_WAIT_S", 0.01)
        monkeypatch.setattr(hf, "_LONGEST_WAIT_S", 0.05)
        factory._backend.cache_clear()
        # A connection to an earlier server may have had this one's port.
        close_session()
        yield server
    close_session()
    factory._backend.cache_clear()


@pytest.fixture(scope="session")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Of a family whose rows know of their neighbours' images."""
    from families import processors

    directory = tmp_path_factory.mktemp("mllama")
    processors.BUILDERS["mllama"](directory)
    return processors.BY_NAME["mllama"].load(directory)[1]
