import pytest

from families.builders import dots3_note
from families.real import RealFamily


@pytest.mark.full
class TestDots3Note(RealFamily):
    FAMILY = dots3_note.DOTS3_NOTE
