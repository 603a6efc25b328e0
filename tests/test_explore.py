"""What the notebooks explore with: sliders over an optimizer's path."""

import base64
import functools
import re
import sys
from typing import Any

import numpy as np
import optax
import pytest

import optabs
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.landscapes import LANDSCAPES, path
from benchmarks.survey import explore as exploring
from benchmarks.survey.explore import explore, explored_figure

WIDGET = "application/vnd.jupyter.widget-view+json"


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
    assert exploring.png(figure).startswith(b"\x89PNG")


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
