import pytest

from families.builders import mistral_large4
from families.real import RealFamily


@pytest.mark.full
class TestMistralLarge4(RealFamily):
    FAMILY = mistral_large4.MISTRAL_LARGE4
