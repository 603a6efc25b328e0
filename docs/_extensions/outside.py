"""Brings in what lies outside docs/: the notebooks, and the links of the README."""

import copy
import pathlib
import re
from typing import Any

import nbformat
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

_RESULTS_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(benchmarks/results/(\w+)[^)#]*(#[^)]*)?\)")
_DOCS_LINK = re.compile(r"\]\(docs/([\w/]+\.md)")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_WIDGET_NOTE = "A widget: run the notebook to use it."


def bring_notebooks(source: pathlib.Path, target: pathlib.Path) -> None:
    """Makes `target` hold exactly the notebooks of `source`, as pages show them."""
    paths = sorted(source.glob("*.ipynb"))
    for left in {path.name for path in target.glob("*.ipynb")} - {path.name for path in paths}:
        (target / left).unlink()
    for path in paths:
        nbformat.write(as_page(nbformat.read(path, 4)), target / path.name)


def as_page(notebook: Any) -> Any:
    """A notebook without what needs a kernel, and with links as seen from docs/."""
    page = copy.deepcopy(notebook)
    page.metadata.pop("widgets", None)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../docs/", "](../")
        elif cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs if (shown := _still(output))]
    return page


def _still(output: Any) -> Any:
    """An output without its widget: the picture beside it, or a note in its place."""
    data = output.get("data", {})
    if data.pop(_WIDGET, None) is None or any(kind.startswith("image/") for kind in data):
        return output
    # The text of a progress bar is how it looked at the start.
    if not re.match(r"\w+\(", data.get("text/plain", "")):
        return None
    output["data"] = nbformat.from_dict({"text/plain": _WIDGET_NOTE})
    return output


def with_page_links(markdown: str, page: str) -> str:
    """Links into benchmarks/results/NAME lead to the page NAME, or to a heading of it, and
    links into docs to the page that is there.

    On the page NAME those without a heading are text.
    """

    def turned(link: re.Match[str]) -> str:
        text, name, anchor = link.groups(default="")
        target = anchor if name == page else f"project:/results/{name}.md{anchor}"
        return f"[{text}]({target})" if target else f"`{text}`"

    return _DOCS_LINK.sub(r"](project:/\1", _RESULTS_LINK.sub(turned, markdown))


def _bring_notebooks(app: Sphinx) -> None:
    docs = pathlib.Path(app.srcdir)
    bring_notebooks(docs.parent / "notebooks", docs / "notebooks")


def _turn_links(app: Sphinx, path: pathlib.Path, page: str, content: list[str]) -> None:
    content[0] = with_page_links(content[0], page)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Copies before the pages are looked for, and turns links as a file is included."""
    app.connect("builder-inited", _bring_notebooks)
    app.connect("include-read", _turn_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
