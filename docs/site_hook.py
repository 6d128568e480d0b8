"""Lets the site show what lies outside docs/: README.md is its first page, and what pages link to comes along.

On GitHub a link in docs/ may lead anywhere in the repository, `../examples/foreign_loop.py`. mkdocs knows docs/ only.
So each file that a link leads to is added under its path in the repository, and the link rewritten. The strict build
names a link that leads to a folder, to nothing, or out of the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
OWN_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
"""A link or an image to a file: what comes before its path, the path, what comes after."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of OWN_PAGES, and the files outside docs/ that they and the pages of docs/ link to."""
    pages = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in OWN_PAGES}
    for name, text in pages.items():
        files.append(File.generated(config, _in_site(name), content=text))
    pages |= {f"docs/{page.src_uri}": page.content_string for page in files.documentation_pages() if page.abs_src_path}
    for name, text in pages.items():
        for _, path, _ in LINK.findall(text):
            target = _target(name, path)
            if not files.get_file_from_path(_in_site(target)) and (REPOSITORY / target).is_file():
                files.append(File.generated(config, _in_site(target), abs_src_path=str(REPOSITORY / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Rewrites links from where a page lies in the repository to where it and its targets lie in the site."""
    uri = page.file.src_uri
    name = {_in_site(own): own for own in OWN_PAGES}.get(uri, f"docs/{uri}")

    def rewritten(link: re.Match[str]) -> str:
        target = _in_site(_target(name, link[2]))
        return link[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".") + link[3]

    return LINK.sub(rewritten, markdown)


def _target(page: str, path: str) -> str:
    """Where in the repository a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path))


def _in_site(path: str) -> str:
    """Where in the site a file of the repository lies: docs/ is its root, README.md its first page."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")
