import pytest

from families.builders import minicpmv4_6
from families.real import RealFamily


@pytest.mark.full
class TestMiniCpmV46(RealFamily):
    FAMILY = minicpmv4_6.MINICPMV4_6
