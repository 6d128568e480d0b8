import pytest

from families.builders import gemma4_unified
from families.real import RealFamily


@pytest.mark.full
class TestGemma4Unified(RealFamily):
    FAMILY = gemma4_unified.GEMMA4_UNIFIED
