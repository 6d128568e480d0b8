import pytest

from families.builders import ovis2
from families.real import RealFamily


@pytest.mark.full
class TestOvis2(RealFamily):
    FAMILY = ovis2.OVIS2
