"""Landscapes, paths over them, their pictures, and the notebooks' sliders."""

import base64
import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import PIL.Image
import pytest

import optabs
from benchmarks.lab import landscapes
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.landscapes import COLORS, LANDSCAPES, Landscape, emitted, path
from benchmarks.survey import explore as exploring
from benchmarks.survey.explore import Explorer

WIDGET = "application/vnd.jupyter.widget-view+json"
EVERY = pytest.mark.parametrize("landscape", LANDSCAPES.values(), ids=LANDSCAPES)


@pytest.mark.slow
@EVERY
def test_a_landscape_is_0_at_its_minima_and_curves_both_ways_at_its_saddles(
    landscape: Landscape,
) -> None:
    for place in map(jnp.array, (*landscape.minima, *landscape.saddles)):
        np.testing.assert_allclose(jax.grad(landscape.function)(place), 0.0, atol=1e-6)
        low, high = np.linalg.eigvalsh(jax.hessian(landscape.function)(place))
        if tuple(map(float, place)) in landscape.saddles:
            assert low < -0.5 < 0.5 < high
        else:
            assert low > 0 == float(landscape.function(place))
    assert landscape.grid(64)[2].min() >= 0 < landscape.function(jnp.array(landscape.start))
    levels = landscape.levels()
    assert levels[0] > 0
    np.testing.assert_allclose(np.diff(np.log(levels), 2), 0.0, atol=1e-5)
    left, right, low, high = landscape.box
    # The saddle's other minimum mirrors the one that is drawn.
    for x, y in (landscape.start, *landscape.saddles, landscape.minima[-1]):
        assert left < x < right
        assert low < y < high


@pytest.mark.slow
def test_the_rotated_ravine_is_the_ravine() -> None:
    places = [LANDSCAPES[name] for name in ("ravine", "rotated_ravine")]
    straight, rotated = (jax.hessian(place.function)(jnp.zeros(2)) for place in places)
    np.testing.assert_allclose(straight, np.diag([1.0, landscapes.CONDITION]))
    np.testing.assert_allclose(np.diag(rotated), (1 + landscapes.CONDITION) / 2, rtol=1e-6)
    np.testing.assert_allclose(rotated @ np.ones(2), np.ones(2), atol=1e-2)
    losses = [float(place.function(jnp.array(place.start))) for place in places]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nag", "adamw_abs"])
def test_a_path_is_what_a_hand_written_loop_visits_explored_or_not(name: str) -> None:
    place, optimizer = LANDSCAPES["beale"], getattr(optabs, name)(0.01)
    points = path(place, optimizer, 7)
    params = jnp.array(place.start)
    state, expected, gradients = optimizer.init(params), [params], []
    for _ in range(7):
        grads = jax.grad(place.function)(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        gradients.append(grads)
        expected.append(optabs.nag_eval_params(state, params) if name == "nag" else params)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, np.stack(expected), rtol=1e-5)
    if name == "nag":
        assert emitted(optabs.ema(0.5), jnp.eye(3)[0]).tolist() == [0.5, 0.25, 0.125]
        moved = emitted(optimizer, jnp.stack(gradients)).sum(0)
        np.testing.assert_allclose(moved, params - expected[0], rtol=1e-4)
    arguments = {"learning_rate": 0.01} | exploring.decays_of(name)
    explored, losses = exploring.program("beale", name)(arguments)
    np.testing.assert_allclose(explored[:8], points, rtol=1e-5)
    assert losses[7] == pytest.approx(float(place.function(points[-1])))
    diverging = exploring.explored_figure("ravine", name, arguments | {"learning_rate": 1e30})
    assert diverging.axes[1].get_title() == "diverged"


@pytest.mark.slow
@EVERY
def test_a_figure_of_paths_keeps_colours_and_leaves_matplotlib_as_it_was(
    landscape: Landscape,
) -> None:
    before = dict(matplotlib.rcParams)
    optimizers = {"diverging": optabs.sgd(1e6), "adam": optabs.adam(0.1)}
    paths = {name: path(landscape, each, 50) for name, each in optimizers.items()}
    assert not np.isfinite(paths["diverging"][-1]).all()
    np.testing.assert_allclose(paths["adam"][0], landscape.start)
    figure = landscapes.paths_figure(landscape, paths, title="T")
    axis = figure.axes[0]
    assert (axis.get_xlim(), axis.get_title()) == (landscape.box[:2], "T")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(paths)
    assert all(np.isfinite(line.get_xydata()).all() for line in axis.lines)
    with PIL.Image.open(io.BytesIO(exploring.png(figure))) as picture:
        seen = np.asarray(picture.convert("RGB"), float).reshape(-1, 3)
    for color in COLORS[:2]:  # of thin lines
        wanted = np.multiply(255, matplotlib.colors.to_rgb(color))
        assert np.abs(seen - wanted).max(axis=1).min() <= 8
    assert dict(matplotlib.rcParams) == before
    assert not hasattr(figure, "number")  # as pyplot's figures have


@pytest.mark.slow
def test_every_control_redraws_and_compiles_no_more_than_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced: list[str] = []

    @functools.wraps(optabs.adam)
    def counting(**settings: Any) -> optax.GradientTransformation:
        traced.append("adam")
        return optabs.adam(**settings)

    monkeypatch.setitem(exploring.OPTIMIZERS, "adam", counting)
    exploring.program.cache_clear()
    shown = Explorer(["adam", "momentum"], learning_rate=0.1)
    bundle = shown._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {"text/plain", "image/png", WIDGET}
    assert base64.b64decode(bundle["image/png"]) == shown.image.value
    assert bytes(shown.image.value).startswith(b"\x89PNG")
    assert bundle[WIDGET]["model_id"] == shown.model_id
    controls = shown.controls
    assert list(controls) == ["landscape", "optimizer", "rate", "b1", "b2", "decay"]
    assert shown.children == (*controls.values(), shown.image)
    for used, changes in (
        ({"b1", "b2"}, {"rate": 0.01, "b1": 0.5, "b2": 0.9}),
        ({"decay"}, {"optimizer": "momentum", "decay": 0.5, "landscape": "beale"}),
    ):
        for name, value in changes.items():
            before, controls[name].value = shown.image.value, value
            assert shown.image.value != before
        hidden = {name for name in controls if controls[name].layout.display == "none"}
        assert hidden == {"b1", "b2", "decay"} - used
        assert traced == ["adam"]
    exploring.program.cache_clear()


def test_what_cannot_be_explored_is_refused() -> None:
    with pytest.raises(ArgumentError, match="optimizers is 'lion'; choose from sgd"):
        Explorer(["lion"])
