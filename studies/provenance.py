"""What a row of the record came from: versions of libraries, and a digest of the code itself."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_LIBRARIES = ("cal-vlm", "torch", "transformers", "numpy", "pillow")
_PACKAGES = ("cal_schemas", "cal_pipeline", "cal_trainer")
_STUDIES = Path(__file__).resolve().parent
SHAPES = _STUDIES.parent / "examples" / "shapes"
"""Where the world of shapes is, and the tiny models."""


@functools.cache
def versions() -> str:
    """As one text. Of a process's first call: sources that are edited while it works do not change it."""
    told = [f"{name}={importlib.metadata.version(name)}" for name in _LIBRARIES]
    own = [*_STUDIES.glob("*.py"), *(_STUDIES / "arms").glob("*.py"), *SHAPES.glob("*.py")]  # not what scratch/ holds
    files = [*own, *(path for name in _PACKAGES for path in _folder_of(name).rglob("*.py"))]
    return " ".join([*told, f"code={code_digest(files)}"])


def code_digest(files: Iterable[Path]) -> str:
    """12 hex digits over the contents of `files` and their names, with the folder's: wherever that lies."""
    digest = hashlib.sha256()
    for name, source in sorted((f"{path.parent.name}/{path.name}", path.read_bytes()) for path in files):
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]


def _folder_of(package: str) -> Path:
    """Of the installed package, which need not be the one beside this file."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed: see `make install`")
    return Path(spec.origin).parent
