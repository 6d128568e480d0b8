import pytest

from families.builders import qwen_omni
from families.real import RealFamily


@pytest.mark.full
class TestQwen25OmniThinker(RealFamily):
    FAMILY = qwen_omni.QWEN2_5_OMNI_THINKER


@pytest.mark.full
class TestQwen3OmniMoeThinker(RealFamily):
    FAMILY = qwen_omni.QWEN3_OMNI_MOE_THINKER
