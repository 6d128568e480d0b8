"""Families whose samples are token ids, at model level; those of `families.builders` have modules of their own."""

import pytest

from families.family import AnyFamily
from families.model_level import OfIds
from families.table import OF_IDS


@pytest.mark.full
class TestFamiliesOfIds(OfIds):
    @pytest.fixture(scope="class", params=OF_IDS)
    @classmethod
    def family(cls, request: pytest.FixtureRequest) -> AnyFamily:
        return OF_IDS[request.param]
