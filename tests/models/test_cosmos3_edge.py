import pytest

from families.builders import cosmos3_edge
from families.real import RealFamily


@pytest.mark.full
class TestCosmos3Edge(RealFamily):
    FAMILY = cosmos3_edge.COSMOS3_EDGE
