import pytest

from families.builders import internvl
from families.real import RealFamily


@pytest.mark.full
class TestInternVL(RealFamily):
    FAMILY = internvl.INTERNVL
