import pytest

from families.builders import fast_vlm
from families.real import RealFamily


@pytest.mark.full
class TestFastVlm(RealFamily):
    FAMILY = fast_vlm.FAST_VLM
