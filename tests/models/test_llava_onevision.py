import pytest

from families.builders import llava_onevision
from families.real import RealFamily


@pytest.mark.full
class TestLlavaOnevision(RealFamily):
    FAMILY = llava_onevision.LLAVA_ONEVISION
