import pytest

from conftest import Family
from inspect_data import Directories, make_directories


@pytest.fixture(scope="session")
def directories(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Directories:
    """Annotated directories of every kind, measured once."""
    return make_directories(tmp_path_factory.mktemp("inspect"), llava)
