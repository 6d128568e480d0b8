"""Checks what has a few values only, where no flag's parser did."""

from __future__ import annotations

from typing import Any, get_args

from cal_schemas.errors import ConfigError


def check_choice(name: str, value: object, literal: Any) -> None:
    """ConfigError with the choices unless the value is one of this `Literal`: a slip is never taken for another one."""
    if value not in get_args(literal):
        raise ConfigError(f"{name} must be one of {', '.join(map(str, get_args(literal)))}, got {value!r}")
