import pytest

from families.builders import exaone4_5
from families.real import RealFamily


@pytest.mark.full
class TestExaone45(RealFamily):
    FAMILY = exaone4_5.EXAONE4_5
