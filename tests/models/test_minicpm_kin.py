import pytest

from families.builders import minicpm_kin
from families.real import RealFamily


@pytest.mark.full
class TestMiniCpmV47(RealFamily):
    FAMILY = minicpm_kin.MINICPMV4_7


@pytest.mark.full
class TestMiniCpmOcr(RealFamily):
    FAMILY = minicpm_kin.MINICPM_OCR
