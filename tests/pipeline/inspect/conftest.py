from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser import Page, browser, find_browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(str(find_browser()), tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium: Page) -> Page:
    """The one browser of this module, with what earlier pages said and set forgotten."""
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.prefer("")
    chromium.resize(1200, 900)
    return chromium
