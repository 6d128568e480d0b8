import pytest

from families.builders import prompts
from families.model_level import OfIds


@pytest.mark.full
class TestGotOcr2(OfIds):
    FAMILY = prompts.GOT_OCR2


@pytest.mark.full
class TestShieldGemma2(OfIds):
    FAMILY = prompts.SHIELDGEMMA2
