"""The documentation: its links lead somewhere on GitHub, and `make docs` makes a site that needs nobody else."""

from __future__ import annotations

import importlib
import json
import re
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pymdownx.slugs import slugify

from browser import browser, browser_test, find_browser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FETCHED = re.compile(r"""(?:src=|<link[^>]*href=|url\(|@import )["']?((?:https?:)?//[^"')\s]+)""")
API = {
    "cal_schemas": "api/cal_schemas",
    "cal_pipeline": "api/cal_pipeline",
    "cal_pipeline.inspect": "api/inspect",
    "cal_trainer": "api/cal_trainer",
}


def anchors(page: Path) -> set[str]:
    slug = slugify(case="lower")
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {slug(re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading), "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it, by a process that cannot reach a network."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def refused(*args: object) -> None:
        raise AssertionError(f"the build reaches for {args[-1]}")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        patch.setattr(socket, "getaddrinfo", refused)
        patch.chdir(ROOT)
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


@pytest.mark.full
def test_no_page_of_the_site_fetches_anything_from_elsewhere(site: Path) -> None:
    assert (site / "index.html").is_file()
    for file in site.rglob("*"):
        if file.suffix in (".html", ".css"):
            assert FETCHED.findall(file.read_text()) == [], file


@pytest.mark.full
def test_the_first_page_is_the_readme_and_the_search_knows_all_pages(site: Path) -> None:
    title = (ROOT / "README.md").read_text().splitlines()[0].removeprefix("# ")
    assert f">{title}<" in (site / "index.html").read_text()
    found = {
        entry["location"].partition("#")[0]
        for entry in json.loads((site / "search/search_index.json").read_text())["docs"]
    }
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")} - {"404.html"}
    assert len(pages) > 15
    assert pages <= found | {"index.html"}


@pytest.mark.full
@pytest.mark.parametrize("package", API)
def test_the_reference_documents_every_public_name(package: str, site: Path) -> None:
    page = (site / f"{API[package]}.html").read_text()
    for name in importlib.import_module(package).__all__:
        assert f'id="{package}.{name}"' in page, name


@browser_test
def test_the_search_finds_words_and_nothing_comes_from_elsewhere(site: Path, tmp_path: Path) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Handler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = f"http://127.0.0.1:{server.server_address[1]}/"
        with browser(find_browser() or "", tmp_path) as page:
            page.call("Page.navigate", url=f"{own}index.html?q=swap%20control")
            found, until = "", time.monotonic() + 60
            while "matching" not in found and time.monotonic() < until:
                time.sleep(0.2)
                found = page.js("document.querySelector('.md-search-result')?.innerText ?? ''")
            assert "Looking at the deltas" in found
            assert page.problems == []
            assert {url for url in page.requests if not url.startswith((own, "data:", "about:"))} == set()
        server.shutdown()
