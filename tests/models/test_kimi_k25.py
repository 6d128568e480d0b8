import pytest

from families.builders import kimi_k25
from families.real import RealFamily


@pytest.mark.full
class TestKimiK25(RealFamily):
    FAMILY = kimi_k25.KIMI_K25
