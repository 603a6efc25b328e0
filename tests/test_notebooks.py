"""The notebooks as they are stored, and what they explore with; `make notebooks` runs them."""

import base64
import copy
import functools
import io
import pathlib
import re
import sys
from typing import Any

import jax.numpy as jnp
import nbformat
import numpy as np
import optax
import PIL.Image
import pytest

import optabs
from benchmarks.lab import explore as exploring
from benchmarks.lab.arguments import ArgumentError
from benchmarks.survey.explore import explore, explored_figure
from benchmarks.lab.landscapes import LANDSCAPES
from benchmarks.lab.landscapes import COLORS, emitted, path, paths_figure
from benchmarks.lab.report import png

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


def test_emitted_is_a_loop_of_updates() -> None:
    gradients = jnp.array([[1.0, -2.0], [3.0, 0.5], [0.0, 4.0]])
    optimizer = optabs.adamw(0.1)
    params = jnp.zeros(2)
    state = optimizer.init(params)
    for gradient, update in zip(gradients, emitted(optimizer, gradients), strict=True):
        expected, state = optimizer.update(gradient, state, params)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["nag", "adam", "adam_abs_steady"])
def test_an_explored_path_is_the_path(name: str) -> None:
    decays = exploring.decays_of(name)
    points, losses = exploring.program("beale", name, 20)({"learning_rate": 0.01} | decays)
    expected = path(LANDSCAPES["beale"], exploring.OPTIMIZERS[name](0.01), 20)
    np.testing.assert_allclose(points, expected, rtol=1e-5)
    assert losses[-1] == pytest.approx(float(LANDSCAPES["beale"].function(points[-1])))


def test_every_control_redraws_and_compiles_no_more_than_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = []

    @functools.wraps(optabs.adam)
    def counting(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        traced.append("adam")
        return optabs.adam(*args, **kwargs)

    monkeypatch.setitem(exploring.OPTIMIZERS, "adam", counting)
    exploring.program.cache_clear()
    shown = explore(["ravine", "beale"], ["adam", "momentum"], learning_rate=0.1, steps=10)
    controls = shown.controls
    assert list(controls) == ["landscape", "optimizer", "rate", "b1", "b2", "decay"]
    assert traced == ["adam"]
    for name, value in {"rate": 0.01, "b1": 0.5, "b2": 0.9}.items():
        before, kept = shown.image.value, controls[name].value
        controls[name].value = value
        assert shown.image.value != before
        controls[name].value = kept
        assert shown.image.value == before == shown.first
    assert traced == ["adam"]

    def hidden() -> set[str]:
        return {name for name in controls if controls[name].layout.display == "none"}

    assert hidden() == {"decay"}
    for name, value in {"optimizer": "momentum", "decay": 0.5, "landscape": "beale"}.items():
        before = shown.image.value
        controls[name].value = value
        assert shown.image.value != before
    assert hidden() == {"b1", "b2"}
    exploring.program.cache_clear()


def test_one_output_has_the_widget_and_the_first_picture() -> None:
    shown = explore(["saddle"], ["sgd"], steps=5)
    bundle = shown._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {"text/plain", "image/png", WIDGET}
    assert base64.b64decode(bundle["image/png"]) == shown.first == shown.image.value
    assert bundle[WIDGET]["model_id"] == shown.widget.model_id


def test_without_ipywidgets_there_is_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bundle = explore(["saddle"], ["sgd"], steps=5)._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def test_a_path_that_diverges_is_drawn_as_such() -> None:
    figure = explored_figure("ravine", "sgd", learning_rate=1.0, decays={}, steps=50)
    assert figure.axes[1].get_title() == "diverged"
    assert png(figure).startswith(b"\x89PNG")


def test_a_light_picture_keeps_the_colours_of_thin_lines() -> None:
    optimizers = {"sgd": optabs.sgd(0.01), "adam": optabs.adam(0.1), "nag": optabs.nag(0.1)}
    beale = LANDSCAPES["beale"]
    figure = paths_figure(
        beale, {name: path(beale, optimizers[name], 50) for name in optimizers}
    )
    with PIL.Image.open(io.BytesIO(png(figure))) as picture:
        seen = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    for color in COLORS[: len(optimizers)]:
        wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert np.abs(seen - wanted).max(axis=1).min() <= 8


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((["hill"],), {}, "landscapes is 'hill'; choose from rosenbrock, beale"),
        ((["saddle"], ["lion"]), {}, "optimizers is 'lion'; choose from sgd"),
        (("saddle",), {}, "landscapes is 'saddle'; pass a list of one or more names."),
        ((["saddle"], []), {}, "optimizers is []; pass a list of one or more names."),
        ((), {"learning_rate": 20}, "learning_rate is 20; pass a number from 1e-06 to 10."),
        ((), {"steps": 0}, "steps is 0; pass a whole number above 0."),
    ],
)
def test_what_cannot_be_explored_is_refused(
    arguments: Any, options: Any, sentence: str
) -> None:
    with pytest.raises(ArgumentError, match="^" + re.escape(sentence)):
        explore(*arguments, **options)
