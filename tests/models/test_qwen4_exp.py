import pytest

from families.builders.qwen4_exp import QWEN4_EXP
from families.real import RealFamily


@pytest.mark.full
class TestQwen4Exp(RealFamily):
    FAMILY = QWEN4_EXP
