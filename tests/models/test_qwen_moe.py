import pytest

from families.builders import qwen_moe
from families.real import RealFamily


@pytest.mark.full
class TestQwen3VlMoe(RealFamily):
    FAMILY = qwen_moe.QWEN3_VL_MOE


@pytest.mark.full
class TestQwen35Moe(RealFamily):
    FAMILY = qwen_moe.QWEN3_5_MOE
