import pytest

from families.builders import mistral3
from families.real import RealFamily


@pytest.mark.full
class TestMistral3(RealFamily):
    FAMILY = mistral3.MISTRAL3
