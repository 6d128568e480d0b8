import pytest

from families.builders import emu3
from families.model_level import OfIds


@pytest.mark.full
class TestEmu3(OfIds):
    FAMILY = emu3.EMU3
