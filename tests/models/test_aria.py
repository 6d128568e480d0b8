import pytest

from families.builders.aria import ARIA
from families.real import RealFamily


@pytest.mark.full
class TestAria(RealFamily):
    FAMILY = ARIA
