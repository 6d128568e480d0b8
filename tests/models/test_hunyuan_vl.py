import pytest

from families.builders import hunyuan_vl
from families.real import RealFamily


@pytest.mark.full
class TestHunYuanVL(RealFamily):
    FAMILY = hunyuan_vl.HUNYUAN_VL
