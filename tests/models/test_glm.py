import pytest

from families.builders import glm
from families.real import RealFamily


@pytest.mark.full
class TestGlm4v(RealFamily):
    FAMILY = glm.GLM4V
