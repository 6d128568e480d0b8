import pytest

from families.builders.ernie4_5_vl_moe import ERNIE4_5_VL_MOE
from families.real import RealFamily


@pytest.mark.full
class TestErnie45VlMoe(RealFamily):
    FAMILY = ERNIE4_5_VL_MOE
