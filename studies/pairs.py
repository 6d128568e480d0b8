"""Pairs of conditions that the text of docs/study.md compares, beyond each arm's own first condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condition import MAIN_NOISE, REFERENCES

_ONLINE: dict[str, Any] = {"noise": MAIN_NOISE, "weights": "online"}
_SMALL = {"alpha": "0.1", "beta": "0.5"}


def _cached(reference: str, **fields: Any) -> dict[str, Any]:
    return {"noise": MAIN_NOISE, "weights": "cached", "reference": reference} | fields


_SMALL_ONLINE = {**_ONLINE, **_SMALL}


def _against_online(reference: str, noise: float) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return _cached(reference, noise=noise), {**_ONLINE, "noise": noise}


PAIRS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    **{f"`{name}` against online": _against_online(name, MAIN_NOISE) for name in REFERENCES if name != "oracle"},
    **{
        f"`{name}` against online, p = {noise:g}": _against_online(name, noise)
        for noise in (0.0, 0.1, 0.2)
        for name in ("initial", "final", "crossfit", "longer", "larger")
    },
    **{
        f"`{name}` [0.2, 1] against online [0.1, 0.5]": (_cached(name), _SMALL_ONLINE)
        for name in ("initial", "final", "crossfit", "longer", "larger")
    },
    "`crossfit` against `final`": (_cached("crossfit"), _cached("final")),
    "`longer` against `crossfit`": (_cached("longer"), _cached("crossfit")),
    "`larger` against `longer`": (_cached("larger"), _cached("longer")),
    "`larger` against `oracle`": (_cached("larger"), _cached("oracle")),
    "`initial`: [0.1, 0.5] against [0.2, 1]": (_cached("initial", **_SMALL), _cached("initial")),
    "online: [0.1, 0.5] against [0.2, 1]": (_SMALL_ONLINE, _ONLINE),
    "`initial` [0.1, 0.5] against online [0.1, 0.5]": (_cached("initial", **_SMALL), _SMALL_ONLINE),
    "`longer` [0.2, 1] against `initial` [0.1, 0.5]": (_cached("longer"), _cached("initial", **_SMALL)),
    "`larger` [0.2, 1] against `initial` [0.1, 0.5]": (_cached("larger"), _cached("initial", **_SMALL)),
    "`initial`: alpha 0 against 0.2": (_cached("initial", alpha="0"), _cached("initial")),
    "`initial`: beta inf against 1": (_cached("initial", beta="inf"), _cached("initial")),
    "`initial`: [0, inf] against [0, 1]": (
        _cached("initial", alpha="0", beta="inf"),
        _cached("initial", alpha="0"),
    ),
    "`initial`: [1, 5] against [0.2, 1]": (_cached("initial", alpha="1", beta="5"), _cached("initial")),
    **{
        f"`larger`: [{alpha}, {beta}] against [0.2, 1]": (_cached("larger", alpha=alpha, beta=beta), _cached("larger"))
        for alpha, beta in (("0.4", "2"), ("1", "5"))
    },
    "two answers: joined against span": (
        _cached("initial", answers=2, pool="joined"),
        _cached("initial", answers=2),
    ),
    "`initial`, 4 x 8: micro_batch against step": (
        _cached("initial", accumulation=4, normalization="micro_batch"),
        _cached("initial", accumulation=4),
    ),
    "online weights in both stages against finetuning only": ({**_ONLINE, "pretraining": "online"}, _ONLINE),
    **{
        f"contrast {contrast} against drop": (_cached("initial", contrast=contrast), _cached("initial"))
        for contrast in ("patch_mask 0.5", "patch_mask 0.7", "patch_mask 0.9", "gaussian_blur 1", "gaussian_blur 10")
    },
}
"""What is compared -> fields of Run: those of the one, those of the other."""
