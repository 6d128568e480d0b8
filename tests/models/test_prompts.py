import pytest

from families import page
from families.builders import prompts
from families.family import AnyFamily
from families.model_level import ModelLevel


class OfIds(ModelLevel):
    def test_the_page_says_that_their_processors_were_not_run(self, family: AnyFamily) -> None:
        page.record(family.name, end_to_end=family.end_to_end)


@pytest.mark.full
class TestGotOcr2(OfIds):
    FAMILY = prompts.GOT_OCR2


@pytest.mark.full
class TestShieldGemma2(OfIds):
    FAMILY = prompts.SHIELDGEMMA2
