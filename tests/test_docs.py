"""What the pages are built with; `make pages` builds them, warnings as errors."""

import inspect
import pathlib
import re

import nbformat
import pytest

import optabs
from docs._extensions import mathml, names, offline, outside, written
from optabs.optimizers import gradient_descent

DOCS = pathlib.Path(__file__).parents[1] / "docs"
WIDGET = "application/vnd.jupyter.widget-view+json"


def documented() -> set[str]:
    """What the pages' autodoc directives describe."""
    text = "\n".join(path.read_text() for path in DOCS.rglob("*.md"))
    named = set(re.findall(r"auto(?:function|class):: (\S+)", text))
    modules = re.findall(r"automodule:: optabs\.(\S+)\n   :members:", text)
    members = inspect.getmembers(optabs, inspect.ismodule)
    return named | {
        f"optabs.{module}.{name}"
        for module, its in members
        if module in modules
        for name in vars(its)
    }


def test_every_public_name_is_on_a_page() -> None:
    found = documented()
    assert names.missing_names(found) == []
    # The test can fail: a name, a loss and a feature that no page describes.
    gone = {"optabs.adam_abs", "optabs.losses.mse", "optabs.features.batch_mean"}
    assert set(names.missing_names(found - gone)) == gone


def test_private_names_and_modules_need_no_page() -> None:
    public = names.public_names()
    assert not [name for name in public if "._" in name]
    assert not {"optabs.losses", "optabs.features"} & set(public)


def test_a_literal_means_a_public_name_by_its_ending() -> None:
    targets = names.link_targets()
    assert targets["mse"] == targets["losses.mse"] == "optabs.losses.mse"
    assert targets["features.batch_mean"] == "optabs.features.batch_mean"
    assert "batch_mean" not in targets


def formulas() -> list[str]:
    texts = [inspect.getdoc(optabs.losses) or ""]
    for name in names.public_names():
        *modules, function = name.split(".")[1:]
        owner = getattr(optabs, modules[0]) if modules else optabs
        texts.append(inspect.getdoc(getattr(owner, function)) or "")
    inline = [formula for text in texts for formula in re.findall(r":math:`([^`]*)`", text)]
    block = r"\.\. math:: (.*?)(?=\n\n|\n\.\.)"
    return inline + [f for text in texts for f in re.findall(block, text, re.DOTALL)]


def test_every_formula_of_a_docstring_becomes_mathml() -> None:
    found = formulas()
    assert len(found) > 100
    for formula in found:
        for piece in mathml.pieces(formula):
            assert mathml.mathml(piece, display=True).startswith("<math ")


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"\left( x"])
def test_latex_that_cannot_be_shown_is_refused(latex: str) -> None:
    with pytest.raises(mathml.MathError, match=re.escape(repr(latex))):
        mathml.mathml(latex)


def test_displays_are_cut_at_gaps_outside_of_braces() -> None:
    assert mathml.pieces("a = b, \\qquad\n c = d") == ["a = b,", "c = d"]
    assert mathml.pieces(r"\theta \leftarrow a \qquad b") == [r"\theta \leftarrow a", "b"]
    for whole in (r"\frac{a \qquad b}{c}", r"\begin{cases} a \qquad b \end{cases}"):
        assert mathml.pieces(whole) == [whole]


def test_spaces_that_browsers_get_wrong() -> None:
    assert '<mo lspace="0.17em" rspace="0.17em">log</mo>' in mathml.mathml(r"y \log p")
    assert mathml.mathml("|g|").count('lspace="0" rspace="0">|') == 2
    assert 'form="prefix"' in mathml.mathml("a = -b")
    assert 'form="prefix"' not in mathml.mathml("a - b")


def check(**hyperparameters: float) -> None:
    """Stands for the check of an optimizer's arguments."""


def spelled(rate: float, *, eps: float = 1e-8) -> float:
    """A docstring."""
    check(rate=rate, eps=eps)
    # A reason.
    step = rate + eps

    return -step


def test_a_body_is_what_follows_docstring_and_checks() -> None:
    assert written.body(spelled) == "step = rate + eps\n\nreturn -step"
    assert written.signature(spelled) == ("(rate: float, *, eps: float = 1e-8)", "float")
    assert written.body(gradient_descent.momentum) == (
        "return descend(ema(decay), learning_rate=learning_rate)"
    )


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/a.css">',
        '<img alt="" src="http://example/a.png">',
        "<style>@import 'https://cdn.example/a.css';</style>",
        "<style>b { background: url(https://cdn.example/a.png) }</style>",
        '<script type="module">import x from "https://cdn.example/x.js"</script>',
    ],
)
def test_requests_to_other_hosts_are_found(tag: str) -> None:
    assert len(offline.requests_elsewhere(f"<html><body>{tag}</body></html>")) == 1


def test_links_and_own_files_are_no_requests() -> None:
    page = (
        '<a href="https://example/">x</a><script src="_static/a.js"></script>'
        '<img src="data:image/png;base64,AAAA"><svg xmlns="http://www.w3.org/2000/svg"></svg>'
        "<p>import x from 'https://cdn.example/x.js'</p>"
    )
    assert offline.requests_elsewhere(page) == []


def test_links_of_the_readme_lead_to_pages() -> None:
    text = "[a](benchmarks/results/steady) ![b](benchmarks/results/steady/b.png)"
    assert outside.with_page_links(text, "index") == (
        "[a](project:/results/steady.md) ![b](benchmarks/results/steady/b.png)"
    )
    assert outside.with_page_links(text, "steady").startswith("`a` ![b]")
    text = "[a](benchmarks/results/timing/README.md#a-population)"
    assert outside.with_page_links(text, "gadam") == (
        "[a](project:/results/timing.md#a-population)"
    )
    assert outside.with_page_links(text, "timing") == "[a](#a-population)"
    text = "[a](docs/optimizers/dao_e.md) [b](docs)"
    assert outside.with_page_links(text, "timing") == (
        "[a](project:/optimizers/dao_e.md) [b](docs)"
    )


def test_a_notebook_shows_pictures_in_place_of_widgets(tmp_path: pathlib.Path) -> None:
    def output(**data: str) -> nbformat.NotebookNode:
        return nbformat.v4.new_output("display_data", {WIDGET: "{}"} | data)

    outputs = [
        output(**{"image/png": "AAAA", "text/plain": "VBox()"}),
        output(**{"text/plain": "VBox(children=())"}),
        output(**{"text/plain": "  0%|   | 0/3"}),
        nbformat.v4.new_output("stream", text="4\n"),
    ]
    code = nbformat.v4.new_code_cell("1", outputs=outputs)
    text = nbformat.v4.new_markdown_cell("[losses](../docs/losses.md)")
    (tmp_path / "notebooks").mkdir()
    book = nbformat.v4.new_notebook(cells=[text, code])
    nbformat.write(book, tmp_path / "notebooks" / "01_new.ipynb")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "00_old.ipynb").write_text("{}")

    outside.bring_notebooks(tmp_path / "notebooks", tmp_path / "pages")

    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["01_new.ipynb"]
    shown_text, shown = nbformat.read(tmp_path / "pages" / "01_new.ipynb", 4).cells
    assert shown_text.source == "[losses](../losses.md)"
    picture, note, stream = shown.outputs
    assert set(picture.data) == {"image/png", "text/plain"}
    assert note.data == {"text/plain": "A widget: run the notebook to use it."}
    assert stream.text == "4\n"
