import pytest

from families.builders.granite_docling import GRANITE_DOCLING
from families.real import RealFamily


@pytest.mark.full
class TestGraniteDocling(RealFamily):
    FAMILY = GRANITE_DOCLING
