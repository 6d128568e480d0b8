import pytest

from families.builders import cohere2_vision
from families.real import RealFamily


@pytest.mark.full
class TestCohere2Vision(RealFamily):
    FAMILY = cohere2_vision.COHERE2_VISION
