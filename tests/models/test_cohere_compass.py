import pytest

from families.builders import cohere_compass
from families.real import RealFamily


@pytest.mark.full
class TestCohereCompass(RealFamily):
    FAMILY = cohere_compass.COHERE_COMPASS
