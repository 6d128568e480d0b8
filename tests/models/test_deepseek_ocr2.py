import pytest

from families.builders import deepseek_ocr2
from families.real import RealFamily


@pytest.mark.full
class TestDeepseekOcr2(RealFamily):
    FAMILY = deepseek_ocr2.DEEPSEEK_OCR2
