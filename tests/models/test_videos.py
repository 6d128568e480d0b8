import pytest

from families.builders import videos
from families.real import RealFamily


@pytest.mark.full
class TestLlavaNextVideo(RealFamily):
    FAMILY = videos.LLAVA_NEXT_VIDEO


@pytest.mark.full
class TestVideoLlava(RealFamily):
    FAMILY = videos.VIDEO_LLAVA


@pytest.mark.full
class TestVideoLlama3(RealFamily):
    FAMILY = videos.VIDEO_LLAMA_3
