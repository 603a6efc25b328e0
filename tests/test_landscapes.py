"""Landscapes, paths over them and their pictures."""

import doctest
import io
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import PIL.Image
import pytest
from matplotlib.figure import Figure

import optabs
from benchmarks.lab import landscapes
from benchmarks.lab.landscapes import (
    COLORS,
    CONDITION,
    LANDSCAPES,
    Landscape,
    emitted,
    path,
    paths_figure,
)
from benchmarks.lab.report import png


@pytest.fixture(params=LANDSCAPES.values(), ids=LANDSCAPES)
def landscape(request: pytest.FixtureRequest) -> Landscape:
    return request.param


def test_a_landscape_is_0_at_its_minima_and_curves_both_ways_at_its_saddles(
    landscape: Landscape,
) -> None:
    slope, curvatures = jax.grad(landscape.function), jax.hessian(landscape.function)
    for place in map(jnp.array, landscape.minima):
        assert float(landscape.function(place)) == 0.0
        np.testing.assert_allclose(slope(place), 0.0, atol=1e-6)
        assert np.linalg.eigvalsh(curvatures(place))[0] > 0
    for place in map(jnp.array, landscape.saddles):
        np.testing.assert_allclose(slope(place), 0.0, atol=1e-6)
        low, high = np.linalg.eigvalsh(curvatures(place))
        assert low < -0.5 < 0.5 < high
    assert landscape.grid(64)[2].min() >= 0
    assert float(landscape.function(jnp.array(landscape.start))) > 0
    levels = landscape.levels()
    assert levels[0] > 0
    np.testing.assert_allclose(np.diff(np.log(levels), 2), 0.0, atol=1e-5)
    left, right, low, high = landscape.box
    # The saddle's other minimum mirrors the one that is drawn.
    for x, y in (landscape.start, *landscape.saddles, landscape.minima[-1]):
        assert left < x < right
        assert low < y < high


def test_the_rotated_ravine_is_the_ravine() -> None:
    places = [LANDSCAPES[name] for name in ("ravine", "rotated_ravine")]
    straight, rotated = (jax.hessian(place.function)(jnp.zeros(2)) for place in places)
    np.testing.assert_allclose(straight, np.diag([1.0, CONDITION]))
    np.testing.assert_allclose(np.diag(rotated), (1 + CONDITION) / 2, rtol=1e-6)
    np.testing.assert_allclose(rotated @ np.ones(2), np.ones(2), atol=1e-2)
    losses = [float(place.function(jnp.array(place.start))) for place in places]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("name", ["nag", "adamw_abs"])
def test_a_path_is_what_a_hand_written_loop_visits(name: str) -> None:
    place, noise, key = LANDSCAPES["beale"], 0.3, jax.random.key(5)
    optimizer = getattr(optabs, name)(0.01)
    points = path(place, optimizer, 7, start=(0.5, -0.5), noise=noise, key=key)
    params = jnp.array([0.5, -0.5])
    state, expected = optimizer.init(params), [params]
    for step_key in jax.random.split(key, 7):
        grads = jax.grad(place.function)(params) + noise * jax.random.normal(step_key, (2,))
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        expected.append(optabs.nag_eval_params(state, params) if name == "nag" else params)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, np.stack(expected), rtol=1e-5)


def test_the_examples_of_landscapes_run() -> None:
    assert doctest.testmod(landscapes) == (0, 2)


def test_emitted_is_a_loop_of_updates() -> None:
    gradients = jnp.array([[1.0, -2.0], [3.0, 0.5], [0.0, 4.0]])
    optimizer, params = optabs.adamw(0.1), jnp.zeros(2)
    state = optimizer.init(params)
    for gradient, update in zip(gradients, emitted(optimizer, gradients), strict=True):
        expected, state = optimizer.update(gradient, state, params)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, "steps is 0; pass a whole number above 0."),
        ({"steps": 1, "noise": -1.0}, "noise is -1.0; pass a finite number that is 0 or more"),
        ({"steps": 1, "noise": float("nan")}, "noise is nan; pass a finite number"),
    ],
)
def test_a_bad_path_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        path(LANDSCAPES["saddle"], optabs.sgd(0.1), **arguments)


def test_a_figure_of_paths_leaves_matplotlib_as_it_was(landscape: Landscape) -> None:
    def open_figures() -> list[int]:
        pyplot = sys.modules.get("matplotlib.pyplot")
        return [] if pyplot is None else pyplot.get_fignums()

    before, opened = dict(matplotlib.rcParams), open_figures()
    diverging = path(landscape, optabs.sgd(1e6), 50)
    assert not np.isfinite(diverging[-1]).all()
    paths = {"diverging": diverging, "still": path(landscape, optabs.sgd(0.0), 50)}
    axis = paths_figure(landscape, paths).axes[0]
    assert axis.get_xlim() == landscape.box[:2]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(paths)
    assert all(np.isfinite(line.get_xydata()).all() for line in axis.lines)
    np.testing.assert_allclose(paths["still"], [landscape.start] * 51)
    figure = Figure()
    given, colors = figure.subplots(1, 2)[1], dict.fromkeys(paths, "#123456")
    assert paths_figure(landscape, paths, axis=given, title="T", colors=colors) is figure
    assert given.get_title() == "T"
    assert "#123456" in [line.get_color() for line in given.lines]
    assert (dict(matplotlib.rcParams), open_figures()) == (before, opened)


def test_a_light_picture_keeps_the_colours_of_thin_lines() -> None:
    optimizers = {"sgd": optabs.sgd(0.01), "adam": optabs.adam(0.1), "nag": optabs.nag(0.1)}
    beale = LANDSCAPES["beale"]
    paths = {name: path(beale, optimizer, 50) for name, optimizer in optimizers.items()}
    with PIL.Image.open(io.BytesIO(png(paths_figure(beale, paths)))) as picture:
        seen = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    for color in COLORS[: len(optimizers)]:
        wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert np.abs(seen - wanted).max(axis=1).min() <= 8
