"""Files that cannot be opened or read for a while, in a process of its own: a small library, preloaded."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path


def ill_files(match: str, flag: Path, number: int = errno.EIO) -> dict[str, str]:
    """Environment of a process in which paths that hold `match` fail with `number` while the file `flag` exists."""
    library, source = flag.with_name("ill_files.so"), Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=300)
    return {"LD_PRELOAD": str(library), "ILL_MATCH": match, "ILL_FLAG": str(flag), "ILL_ERRNO": str(number)}
