import pytest

from families.builders import qianfan_ocr
from families.real import RealFamily


@pytest.mark.full
class TestQianfanOcr(RealFamily):
    FAMILY = qianfan_ocr.QIANFAN_OCR
