import pytest

from families.builders import muse
from families.real import RealFamily


@pytest.mark.full
class TestMuseGlimmer(RealFamily):
    FAMILY = muse.MUSE_GLIMMER


@pytest.mark.full
class TestMuseSpark(RealFamily):
    FAMILY = muse.MUSE_SPARK
