import pytest

from families.builders import step3p7
from families.real import RealFamily


@pytest.mark.full
class TestStep3p7(RealFamily):
    FAMILY = step3p7.STEP3P7
