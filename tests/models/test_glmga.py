import pytest

from families.builders import glmga
from families.real import RealFamily


@pytest.mark.full
class TestGlmga(RealFamily):
    FAMILY = glmga.GLMGA
