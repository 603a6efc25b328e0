"""Shows a function as its source has it: the signature, and an optimizer's code."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

_SECTIONS = ("Args:", "Returns:")


def _definition(function: Callable[..., Any]) -> tuple[str, ast.FunctionDef]:
    source = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    return source, definition


def signature(function: Callable[..., Any]) -> tuple[str, str]:
    """Parameters and result as they are typed in the source, not what they stand for."""
    source, definition = _definition(function)
    header = source.splitlines()[definition.lineno - 1 : definition.body[0].lineno - 1]
    line = " ".join(re.sub(r"\s#.*", "", part).strip() for part in header)
    found = re.fullmatch(r"def \w+(\(.*\))(?: -> (.*))?:", line)
    assert found is not None
    return found[1], found[2] or ""


def body(function: Callable[..., Any]) -> str:
    """The body of a function after its docstring and the checks of its arguments."""
    source, definition = _definition(function)
    spelled = [each for each in definition.body if not _is_preamble(each)]
    first, last = spelled[0].lineno - 1, spelled[-1].end_lineno
    return textwrap.dedent("\n".join(source.splitlines()[first:last]))


def _is_preamble(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    return isinstance(value, ast.Constant) or (
        isinstance(value, ast.Call) and ast.unparse(value.func) == "check"
    )


def _show_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, given: str | None, result: Any
) -> tuple[str, str] | None:
    if what == "class" and hasattr(obj, "_fields"):
        return "", ""  # a result, which no reader builds
    return signature(obj) if what == "function" else None


def _show_body(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    if what != "function" or not obj.__module__.startswith("optabs.optimizers."):
        return
    place = next(i for i, line in enumerate(lines) if line.strip() in _SECTIONS)
    code = textwrap.indent(body(obj), "   ").splitlines()
    lines[place:place] = ["In code:", "", ".. code-block:: python", "", *code, ""]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Hooks both into autodoc, the code before napoleon reads the sections."""
    app.connect("autodoc-process-signature", _show_signature)
    app.connect("autodoc-process-docstring", _show_body, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
