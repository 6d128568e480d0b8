import pytest

from families.builders import llama4
from families.real import RealFamily


@pytest.mark.full
class TestLlama4(RealFamily):
    FAMILY = llama4.LLAMA4
