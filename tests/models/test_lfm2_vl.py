import pytest

from families.builders import lfm2_vl
from families.real import RealFamily


@pytest.mark.full
class TestLfm2Vl(RealFamily):
    FAMILY = lfm2_vl.LFM2_VL
