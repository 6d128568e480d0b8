import pytest

from families.builders import deepseek
from families.real import RealFamily


@pytest.mark.full
class TestDeepseekVLHybrid(RealFamily):
    FAMILY = deepseek.DEEPSEEK_VL_HYBRID


@pytest.mark.full
class TestJanus(RealFamily):
    FAMILY = deepseek.JANUS
