import pytest

from families.builders import gemma4
from families.real import RealFamily


@pytest.mark.full
class TestGemma4(RealFamily):
    FAMILY = gemma4.GEMMA4
