import pytest

from families.builders import glm5_next
from families.real import RealFamily


@pytest.mark.full
class TestGlm5Next(RealFamily):
    FAMILY = glm5_next.GLM5_NEXT
