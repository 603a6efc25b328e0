"""Landscapes, paths over them and their pictures."""

import doctest
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import benchmarks.lab.paths
import optabs
from benchmarks.lab.landscapes import CONDITION, LANDSCAPES, Landscape
from benchmarks.lab.paths import path, paths_figure


@pytest.fixture(params=LANDSCAPES.values(), ids=LANDSCAPES)
def landscape(request: pytest.FixtureRequest) -> Landscape:
    return request.param


def test_a_landscape_is_0_and_flat_at_its_minima_and_above_0_elsewhere(
    landscape: Landscape,
) -> None:
    for place in landscape.minima:
        point = jnp.array(place)
        assert float(landscape.function(point)) == 0.0
        np.testing.assert_allclose(jax.grad(landscape.function)(point), 0.0, atol=1e-6)
        assert np.linalg.eigvalsh(jax.hessian(landscape.function)(point))[0] > 0
    _, _, values = landscape.grid(64)
    assert values.min() >= 0
    assert float(landscape.function(jnp.array(landscape.start))) > 0
    levels = landscape.levels()
    assert levels[0] > 0
    np.testing.assert_allclose(np.diff(np.log(levels), 2), 0.0, atol=1e-5)


def test_a_landscape_holds_its_points_in_its_box(landscape: Landscape) -> None:
    left, right, low, high = landscape.box
    inside = [landscape.start, *landscape.saddles]
    # The saddle's other minimum mirrors the one that is drawn.
    inside += landscape.minima[-1:]
    for x, y in inside:
        assert left < x < right
        assert low < y < high


def test_saddles_curve_both_ways(landscape: Landscape) -> None:
    for place in landscape.saddles:
        point = jnp.array(place)
        np.testing.assert_allclose(jax.grad(landscape.function)(point), 0.0, atol=1e-6)
        curvature = np.linalg.eigvalsh(jax.hessian(landscape.function)(point))
        assert curvature[0] < -0.5 < 0.5 < curvature[1]


def test_the_rotated_ravine_is_the_ravine() -> None:
    straight, rotated = (
        np.asarray(jax.hessian(LANDSCAPES[name].function)(jnp.zeros(2)))
        for name in ("ravine", "rotated_ravine")
    )
    np.testing.assert_allclose(straight, np.diag([1.0, CONDITION]))
    np.testing.assert_allclose(np.diag(rotated), (1 + CONDITION) / 2, rtol=1e-6)
    along = rotated @ np.array([1.0, 1.0])
    np.testing.assert_allclose(along, [1.0, 1.0], atol=1e-2)
    starts = [LANDSCAPES[name] for name in ("ravine", "rotated_ravine")]
    losses = [float(place.function(jnp.array(place.start))) for place in starts]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("name", ["nag", "adam", "adamw_abs"])
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


def test_the_examples_of_paths_run() -> None:
    assert doctest.testmod(benchmarks.lab.paths) == (0, 4)


def test_a_path_starts_at_the_landscape_s_start_and_needs_no_noise() -> None:
    place = LANDSCAPES["rosenbrock"]
    points = path(place, optabs.sgd(1e-3), 3)
    np.testing.assert_allclose(points[0], place.start)
    np.testing.assert_array_equal(
        points, path(place, optabs.sgd(1e-3), 3, key=jax.random.key(9))
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, "steps is 0; pass a whole number above 0."),
        (
            {"steps": 1, "noise": -1.0},
            "noise is -1.0; pass a finite number that is 0 or more.",
        ),
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
    figure = paths_figure(landscape, paths)
    assert isinstance(figure, Figure)
    axis = figure.axes[0]
    assert axis.get_xlim() == landscape.box[:2]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(paths)
    assert all(np.isfinite(line.get_xydata()).all() for line in axis.lines)
    figure.savefig("/dev/null", format="png")
    assert dict(matplotlib.rcParams) == before
    assert open_figures() == opened


def test_a_figure_of_paths_draws_on_a_given_axis() -> None:
    figure = Figure()
    axis = figure.subplots(1, 2)[1]
    points = {"here": np.zeros((2, 2), np.float32)}
    drawn = paths_figure(
        LANDSCAPES["ravine"], points, axis=axis, title="T", colors={"here": "#123456"}
    )
    assert drawn is figure
    assert axis.get_title() == "T"
    assert "#123456" in [line.get_color() for line in axis.lines]
