"""Lets torchvision be imported beside a torch without CUDA: for tests, never for the product.

Wheels of torchvision are built for CUDA. Where their compiled half does not load, importing the other half fails for
want of two operators' names, which image processors never call. `make install` puts the wheel into a folder that is on
no path, `.venv/torchvision-for-tests`: programs that tests do not start never see it.

Imported first of all by tests/conftest.py, and by every Python that a test starts, since this folder is on its path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
FOLDER = Path(sys.prefix) / "torchvision-for-tests"
WITHOUT = "CAL_TESTS_WITHOUT_TORCHVISION"
"""Set in a process that tests the product without it, and in those that it starts."""
_named: list[object] = []


class _Finder:
    """Finds the torchvision of FOLDER where no other is installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(FOLDER):
            return None
        spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    """Names the two operators first, unless the compiled half defines them."""

    def exec_module(self, module: ModuleType) -> None:
        import torch

        try:
            torch.ops.load_library(Path(self.path).parent / "_C.so")
        except OSError:
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _named.append(library)  # The names go with it.
        super().exec_module(module)


def _install() -> None:
    for folder in map(str, (FOLDER, HERE)):
        if folder not in sys.path:
            sys.path.append(folder)  # Behind an installed torchvision, which is used then.
        inherited = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
        if folder not in inherited:
            os.environ["PYTHONPATH"] = os.pathsep.join([*inherited, folder])
    sys.meta_path.insert(0, _Finder())


if not os.environ.get(WITHOUT):
    _install()
