"""The notebooks as they are stored, and what they explore with; `make notebooks` runs them."""

import copy
import pathlib
import re
from typing import Any

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 400_000  # bytes
WIDGET = "application/vnd.jupyter.widget-view+json"
ABSOLUTE_PATH = re.compile(r"(?<![\w./:)])(?:/\w[\w.-]*){2,}|\b[A-Z]:\\")
PROGRESS_BAR = re.compile(r"\d%\||\bit/s\b")


def texts(output: Any) -> str:
    """What an output says in words."""
    data = output.get("data", {})
    said = [data[kind] for kind in data if kind.startswith("text/")]
    return "\n".join([output.get("text", ""), *said])


def problems(book: Any) -> set[str]:
    """What is wrong with a notebook as it is stored."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    outputs = [output for cell in code for output in cell.outputs]
    said = [texts(output) for output in outputs]
    kinds = [set(output.get("data", {})) for output in outputs]
    titles = re.findall(r"^# .+", "\n".join(prose), re.MULTILINE)
    ids = [cell.id for cell in book.cells]
    words = "\n".join([*said, *(cell.source for cell in book.cells)])
    found = {
        "not run in order": [c.execution_count for c in code] != [*range(1, len(code) + 1)],
        "no pictures": not any("image/png" in kind for kind in kinds),
        "an error": any(output.output_type == "error" for output in outputs),
        "says something to stderr": any(o.get("name") == "stderr" for o in outputs),
        "a warning": any(re.search(r"Warning\b", text) for text in said),
        "a progress bar": any(map(PROGRESS_BAR.search, said)),
        "an absolute path": bool(ABSOLUTE_PATH.search(words)),
        "a widget without picture": any(k >= {WIDGET} and "image/png" not in k for k in kinds),
        "state of widgets": "widgets" in book.metadata,
        "another kernel": book.metadata.get("kernelspec", {}).get("name") != "python3",
        "not one title": len(titles) != 1 or not prose[0].startswith("# "),
        "a generated id": any(re.fullmatch(r"[0-9a-f-]{8,}", name) for name in ids),
        "an id twice": len(set(ids)) < len(ids),
        "times of execution": any("execution" in cell.metadata for cell in code),
    }
    return {name for name, present in found.items() if present}


def test_there_are_notebooks_and_a_page_lists_them() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names == [
        "01_quickstart",
        "02_the_survey",
        "03_optimabs",
        "04_dao_e",
        "05_gadam",
        "06_narrow_state",
    ]
    assert re.search(r"^notebooks/\*$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)


@pytest.fixture(params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def notebook(request: pytest.FixtureRequest) -> pathlib.Path:
    return request.param


def test_a_stored_notebook_is_light_and_sound(notebook: pathlib.Path) -> None:
    assert notebook.stat().st_size < LARGEST
    book = nbformat.read(notebook, 4)
    nbformat.validate(book)
    assert problems(book) == set()


def with_includes(page: pathlib.Path) -> str:
    text = page.read_text()
    included = re.findall(r"^```\{include\} (.+)$", text, re.MULTILINE)
    return "\n".join([text, *((page.parent / name).read_text() for name in included)])


def test_links_of_a_notebook_lead_somewhere(notebook: pathlib.Path) -> None:
    cells = nbformat.read(notebook, 4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)]+)\)", prose)
    assert targets
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        page = with_includes(notebook.parent / name) if name else prose
        headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        anchors = {heading.lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, target


def test_what_is_wrong_with_a_notebook_is_found() -> None:
    sound = nbformat.read(NOTEBOOKS[1], 4)

    def broken(place: int, **changes: Any) -> set[str]:
        book = copy.deepcopy(sound)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        code[place].update(changes)
        return problems(book)

    def said(text: str, name: str = "stdout") -> set[str]:
        return broken(0, outputs=[nbformat.v4.new_output("stream", text=text, name=name)])

    assert broken(1, execution_count=None) == {"not run in order"}
    error = nbformat.v4.new_output("error", ename="ValueError")
    assert broken(0, outputs=[error]) == {"an error"}
    assert said("x", "stderr") == {"says something to stderr"}
    assert said("paths.py:3: RuntimeWarning: overflow") == {"a warning"}
    assert said(" 40%|████      | 4/10") == {"a progress bar"}
    assert said("kept in /home/me/run") == {"an absolute path"}
    assert said("1 / 2 and https://arxiv.org/abs/1 and ../docs/a.md") == set()
    alone = nbformat.v4.new_output("display_data", {WIDGET: {}})
    assert broken(0, outputs=[alone]) == {"a widget without picture"}
    assert broken(0, id="a1b2c3d4") == {"a generated id"}
    assert broken(0, id=sound.cells[0].id) == {"an id twice"}
    assert broken(0, metadata={"execution": {}}) == {"times of execution"}
    empty = nbformat.v4.new_notebook(metadata={"widgets": {}})
    assert problems(empty) == {
        "no pictures",
        "state of widgets",
        "another kernel",
        "not one title",
    }
