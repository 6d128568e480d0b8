import pytest

from families.builders import glm
from families.real import RealFamily


@pytest.mark.full
class TestGlm4v(RealFamily):
    FAMILY = glm.GLM4V


@pytest.mark.full
class TestGlm4vMoe(RealFamily):
    FAMILY = glm.GLM4V_MOE


@pytest.mark.full
class TestGlm46v(RealFamily):
    FAMILY = glm.GLM46V


@pytest.mark.full
class TestGlmOcr(RealFamily):
    FAMILY = glm.GLM_OCR
