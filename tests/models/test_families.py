"""Families whose samples are token ids, at model level; those of `families.builders` have modules of their own."""

import pytest

from families import page
from families.family import AnyFamily
from families.model_level import ModelLevel
from families.table import OF_IDS


@pytest.mark.full
class TestFamiliesOfIds(ModelLevel):
    @pytest.fixture(scope="class", params=OF_IDS)
    @classmethod
    def family(cls, request: pytest.FixtureRequest) -> AnyFamily:
        return OF_IDS[request.param]

    def test_the_page_says_that_their_processors_were_not_run(self, family: AnyFamily) -> None:
        page.record(family.name, end_to_end=family.end_to_end)
