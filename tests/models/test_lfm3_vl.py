import pytest

from families.builders.lfm3_vl import LFM3_VL
from families.real import RealFamily


@pytest.mark.full
class TestLfm3Vl(RealFamily):
    FAMILY = LFM3_VL
