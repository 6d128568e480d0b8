import pytest

from families.builders import qwen
from families.real import RealFamily


class TestQwen25VL(RealFamily):
    FAMILY = qwen.QWEN2_5_VL


@pytest.mark.full
class TestQwen2VL(RealFamily):
    FAMILY = qwen.QWEN2_VL


@pytest.mark.full
class TestQwen3VL(RealFamily):
    FAMILY = qwen.QWEN3_VL


@pytest.mark.full
class TestQwen35(RealFamily):
    FAMILY = qwen.QWEN3_5
