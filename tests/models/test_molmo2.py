import pytest

from families.builders import molmo2
from families.real import RealFamily


@pytest.mark.full
class TestMolmo2(RealFamily):
    FAMILY = molmo2.MOLMO2
