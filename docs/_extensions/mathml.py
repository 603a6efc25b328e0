"""Turns LaTeX into MathML when the pages are built, so that no page needs a script."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

_LOGGER = logging.getLogger(__name__)
_GAP = re.compile(r"\\qquad\b|\n\s*\n")
# What latex2mathml leaves to the browser, which then has no room around log, the room of a
# relation around max and the bars of a size, that of a difference after the minus of a
# negative number, and takes a tilde for a name.
_SPACING = (
    (
        re.compile(r"<m[io]>([a-z]{2,})</m[io]>"),
        r'<mo lspace="0.17em" rspace="0.17em">\1</mo>',
    ),
    (
        re.compile(r'<mo stretchy="false">&#x0007C;</mo>'),
        '<mo stretchy="false" lspace="0" rspace="0">|</mo>',
    ),
    (
        re.compile(r"(<mo[^>]*>&#x000(?:28|2C|3D);</mo>)<mo>&#x02212;</mo>"),
        r'\1<mo form="prefix">&#x02212;</mo>',
    ),
    (re.compile("<mi>&#x0007E;</mi>"), "<mo>&#x0223C;</mo>"),
)


class MathError(ValueError):
    """LaTeX that has no MathML here."""


def mathml(latex: str, *, display: bool = False) -> str:
    """One formula as a `<math>` element."""
    try:
        element = convert(latex, display="block" if display else "inline")
    except Exception as error:  # latex2mathml's own have no common base
        raise MathError(f"{latex!r} is not LaTeX that can be read ({error!r}).") from error
    # latex2mathml prints a command that it does not know as if it were a name.
    if unknown := re.search(r"\\\w+", element):
        raise MathError(f"{latex!r} has {unknown[0]}, for which there is no MathML.")
    for pattern, better in _SPACING:
        element = pattern.sub(better, element)
    return element


def pieces(latex: str) -> list[str]:
    """The formulas of a display, which a narrow window may put below each other."""
    parts = [part.strip() for part in _GAP.split(latex)]
    # A gap inside braces or inside an environment separates no formulas.
    opened, closed = r"\{|\\begin\b|\\left\b", r"\}|\\end\b|\\right\b"
    whole = any(len(re.findall(opened, p)) != len(re.findall(closed, p)) for p in parts)
    return [latex] if whole else [part for part in parts if part]


def _visit(translator: HTML5Translator, node: nodes.Element, *, display: bool) -> None:
    latex = node.astext()
    try:
        formulas = [
            mathml(p, display=display) for p in (pieces(latex) if display else [latex])
        ]
    except MathError as error:
        _LOGGER.warning("%s", error, location=node)
        formulas = [translator.encode(latex)]
    tag = "div" if display else "span"
    translator.body.append(translator.starttag(node, tag, "", CLASS="math notranslate"))
    translator.body.append(" ".join(formulas) + f"</{tag}>")
    raise nodes.SkipNode


def _visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    _visit(translator, node, display=False)


def _visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    _visit(translator, node, display=True)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Adds the renderer that `html_math_renderer` names."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
