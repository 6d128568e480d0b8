import pytest

from families.builders import smolvlm
from families.real import RealFamily


@pytest.mark.full
class TestSmolVLM(RealFamily):
    FAMILY = smolvlm.SMOLVLM
