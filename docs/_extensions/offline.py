"""Refuses pages that would load anything from another host when they are opened."""

import html.parser
import pathlib
import re

from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

_LOGGER = logging.getLogger(__name__)
_ELSEWHERE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
_IN_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)")
_IN_SCRIPT = re.compile(r"(?:import|from|require)\W*['\"]((?:https?:)?//[^'\"]+)")
# What a browser fetches by itself; the links that a reader may follow are not among them.
_LOADING = {"src", "srcset", "poster", "data", "background"}


class _Requests(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = _LOADING | ({"href"} if tag in ("link", "image", "use") else set())
        self.found += [
            value or ""
            for name, value in attrs
            if name in loading and _ELSEWHERE.match(value or "")
        ]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.found += _IN_STYLE.findall(data)
        elif self.cdata_elem == "script":
            self.found += _IN_SCRIPT.findall(data)


def requests_elsewhere(page: str) -> list[str]:
    """The addresses on other hosts that a browser would fetch for this page."""
    requests = _Requests()
    requests.feed(page)
    return requests.found


def _check(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    folder = pathlib.Path(app.outdir)
    finds = {path: requests_elsewhere(path.read_text()) for path in folder.rglob("*.html")}
    finds |= {path: _IN_STYLE.findall(path.read_text()) for path in folder.rglob("*.css")}
    for path, found in finds.items():
        for address in found:
            _LOGGER.error("%s would load %s; keep it here.", path.relative_to(folder), address)
            app.statuscode = 1


def setup(app: Sphinx) -> ExtensionMetadata:
    """Looks at what was written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
