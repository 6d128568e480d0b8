import pytest

from families.builders import perception_lm
from families.real import RealFamily


@pytest.mark.full
class TestPerceptionLm(RealFamily):
    FAMILY = perception_lm.PERCEPTION_LM
