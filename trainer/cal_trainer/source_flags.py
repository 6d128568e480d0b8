"""Reads the flags that say something of a source by its name, whichever sources there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cal_schemas.errors import ConfigError

_LEAST: Final = 1e-6
"""Of what is said of a source: far from where float32 knows no difference to 0, or a sum of rows overflows."""
_LARGEST: Final = 1e6


def parse_shares(given: Sequence[str]) -> dict[str, float]:
    """`--mix` as numbers by name; ConfigError for what is no NAME=SHARE."""
    shares: dict[str, float] = {}
    for item in given:
        name, share = _name_and_number(item)
        if share is None:
            raise ConfigError(f"--mix {item}: expected NAME=SHARE, such as a.json=0.7")
        if not _LEAST <= share <= _LARGEST:
            raise ConfigError(
                f"--mix {item}: a share is from {_LEAST:g} to {_LARGEST:g}; leave out data that is not to be trained on"
            )
        if name in shares:
            raise ConfigError(f"--mix names {name} twice")
        shares[name] = share
    return shares


def parse_weights(given: Sequence[str]) -> dict[str, float]:
    """`--uniform_sources` as weights by name, 1 where none is given; ConfigError for one that is none."""
    weights: dict[str, float] = {}
    for item in given:
        name, weight = _name_and_number(item)
        weight = 1.0 if weight is None else weight
        if not _LEAST <= weight <= _LARGEST:
            raise ConfigError(f"--uniform_sources {item}: a weight is from {_LEAST:g} to {_LARGEST:g}")
        if name in weights:
            raise ConfigError(f"--uniform_sources names {name} twice")
        weights[name] = weight
    return weights


def _name_and_number(item: str) -> tuple[str, float | None]:
    name, mark, number = item.rpartition("=")
    try:
        return (name, float(number)) if mark else (item, None)
    except ValueError:  # The name of a directory such as split=train.
        return item, None
