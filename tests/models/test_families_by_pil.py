"""Families whose processors work without torchvision too."""

import pytest

from families.family import AnyFamily
from families.processors import BY_NAME
from families.real import RealFamily

QUICK = ("llava", "mllama")
"""One with tokens in the text and one with cross-attention; test_qwen.py has M-RoPE."""
FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in BY_NAME]


class TestFamiliesByPil(RealFamily):
    @pytest.fixture(scope="class", params=FAMILIES)
    @classmethod
    def family(cls, request: pytest.FixtureRequest) -> AnyFamily:
        return BY_NAME[request.param]
