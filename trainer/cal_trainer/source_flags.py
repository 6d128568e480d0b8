"""Reads the flags that say something of a source by its name, whichever sources there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cal_schemas.errors import ConfigError


def parse_shares(given: Sequence[str]) -> dict[str, float]:
    """`--mix` as numbers by name; ConfigError for what is no NAME=SHARE."""
    shares: dict[str, float] = {}
    for item in given:
        name, share = _name_and_number(item)
        if share is None:
            raise ConfigError(f"--mix {item}: expected NAME=SHARE, such as a.json=0.7")
        if not 0.0 < share < math.inf:
            raise ConfigError(f"--mix {item}: a share is a number above 0; leave out data that is not to be trained on")
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
        if not 0.0 < weight < math.inf:
            raise ConfigError(f"--uniform_sources {item}: a weight is a number above 0")
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
