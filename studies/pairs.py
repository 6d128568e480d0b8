"""Pairs of conditions that the text of docs/study.md compares, beyond each arm's own first condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condition import MAIN_NOISE

_ONLINE: dict[str, Any] = {"noise": MAIN_NOISE, "weights": "online"}
_SMALL = {"alpha": "0.1", "beta": "0.5"}


def _cached(reference: str, **fields: Any) -> dict[str, Any]:
    return {"noise": MAIN_NOISE, "weights": "cached", "reference": reference, **fields}


PAIRS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "`final` against online": (_cached("final"), _ONLINE),
    "`crossfit` against online": (_cached("crossfit"), _ONLINE),
    "`longer` against online": (_cached("longer"), _ONLINE),
    "`larger` against online": (_cached("larger"), _ONLINE),
    "`larger` against `longer`": (_cached("larger"), _cached("longer")),
    "`larger` against `oracle`": (_cached("larger"), _cached("oracle")),
    "`initial` against online": (_cached("initial"), _ONLINE),
    "`initial`: [0.1, 0.5] against [0.2, 1]": (_cached("initial", **_SMALL), _cached("initial")),
    "online: [0.1, 0.5] against [0.2, 1]": ({**_ONLINE, **_SMALL}, _ONLINE),
    "`initial` [0.1, 0.5] against online [0.1, 0.5]": (_cached("initial", **_SMALL), {**_ONLINE, **_SMALL}),
    "`longer` [0.2, 1] against `initial` [0.1, 0.5]": (_cached("longer"), _cached("initial", **_SMALL)),
    "`larger` [0.2, 1] against `initial` [0.1, 0.5]": (_cached("larger"), _cached("initial", **_SMALL)),
    "`initial`: alpha 0 against 0.2": (_cached("initial", alpha="0"), _cached("initial")),
    "`initial`: beta inf against 1": (_cached("initial", beta="inf"), _cached("initial")),
    "`initial`: [0, inf] against [0, 1]": (
        _cached("initial", alpha="0", beta="inf"),
        _cached("initial", alpha="0"),
    ),
    "`initial`: [1, 5] against [0.2, 1]": (_cached("initial", alpha="1", beta="5"), _cached("initial")),
    "two answers: joined against span": (
        _cached("initial", answers=2, pool="joined"),
        _cached("initial", answers=2),
    ),
    "online weights in both stages against finetuning only": ({**_ONLINE, "pretraining": "online"}, _ONLINE),
    **{
        f"contrast patch_mask {share} against drop": (
            _cached("initial", contrast=f"patch_mask {share}"),
            _cached("initial"),
        )
        for share in (0.5, 0.7, 0.9)
    },
}
"""What is compared -> fields of Run: those of the one, those of the other."""
