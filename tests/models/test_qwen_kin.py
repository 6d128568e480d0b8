import pytest

from families.builders import qwen_kin
from families.real import RealFamily


@pytest.mark.full
class TestCosmos3Omni(RealFamily):
    FAMILY = qwen_kin.COSMOS3_OMNI


@pytest.mark.full
class TestHyperClovaX(RealFamily):
    FAMILY = qwen_kin.HYPERCLOVAX
