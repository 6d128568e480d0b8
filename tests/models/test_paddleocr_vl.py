import pytest

from families.builders import paddleocr_vl
from families.real import RealFamily


@pytest.mark.full
class TestPaddleOcrVL(RealFamily):
    FAMILY = paddleocr_vl.PADDLEOCR_VL
