import pytest

from families.builders.lighton_ocr import LIGHTON_OCR
from families.real import RealFamily


@pytest.mark.full
class TestLightOnOcr(RealFamily):
    FAMILY = LIGHTON_OCR
