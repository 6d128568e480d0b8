import pytest

from families.builders import gemma3n
from families.real import RealFamily


@pytest.mark.full
class TestGemma3n(RealFamily):
    FAMILY = gemma3n.GEMMA3N
