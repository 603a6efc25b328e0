"""What the parts promise, on random trees, shapes and scales."""

import collections
import operator
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import NAMED, Case
from hypothesis import HealthCheck, given, settings
from trees import avals

import optabs
from optabs import _numerics

STEPS = 4

# Compiling for a shape takes longer than Hypothesis allows an example by default.
quick = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
magnitudes = st.floats(1e-30, 1e30) | st.just(0.0)
entries = st.builds(operator.mul, magnitudes, st.sampled_from([-1.0, 1.0]))
shapes = st.sampled_from([(), (1,), (3,), (2, 2)])


@st.composite
def gradient_runs(draw: st.DrawFn) -> list[dict[str, np.ndarray]]:
    """A few gradients of one tree, with entries between 1e-30 and 1e30, and zeros."""
    tree = draw(st.lists(shapes, min_size=1, max_size=2))
    return [
        {
            str(index): draw(hnp.arrays(np.float64, shape, elements=entries))
            for index, shape in enumerate(tree)
        }
        for _ in range(STEPS)
    ]


def emitted(transformation: optax.GradientTransformation, run: list[Any]) -> list[Any]:
    """What a transformation emits for a run of gradients, in float64."""
    with jax.enable_x64(True):
        state = transformation.init(jax.tree.map(jnp.asarray, run[0]))
        outputs = []
        for grads in run:
            updates, state = transformation.update(jax.tree.map(jnp.asarray, grads), state)
            outputs.append(jax.tree.map(np.asarray, updates))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        return outputs


def each(relation: Any, *runs: list[Any]) -> bool:
    """Whether a relation holds for every entry of every output."""
    leaves = [jax.tree.leaves(run) for run in runs]
    return all(bool(np.all(relation(*row))) for row in zip(*leaves, strict=True))


def at_most(a: Any, b: Any) -> Any:
    return a <= b * (1 + 1e-12) + 1e-300


@pytest.mark.slow
@quick
@given(gradient_runs())
def test_mean_size_is_at_most_the_root_mean_square(run: list[Any]) -> None:
    sizes = emitted(optabs.mean_abs(0.9, bias_correction=True), run)
    roots = emitted(optabs.rms(0.9, bias_correction=True), run)
    assert each(at_most, sizes, roots)


@pytest.mark.slow
@quick
@given(gradient_runs())
def test_a_rising_size_is_at_least_the_running_maximum_of_the_mean(run: list[Any]) -> None:
    mean = optabs.mean_abs(0.9, bias_correction=True)
    peaks = emitted(optax.chain(mean, optabs.running_max()), run)
    rising = emitted(optabs.rising_abs(0.9), run)
    assert each(at_most, peaks, rising)
    assert each(at_most, rising[:-1], rising[1:])


@pytest.mark.slow
@quick
@given(gradient_runs())
def test_a_rising_size_without_memory_is_the_largest_size(run: list[Any]) -> None:
    largest = emitted(optax.chain(optabs.mean_abs(0.0), optabs.running_max()), run)
    assert each(
        lambda a, b: np.isclose(a, b, rtol=1e-12),
        emitted(optabs.rising_abs(0.0), run),
        largest,
    )


BOUNDED = [
    (optabs.adam(1.0), (1 - 0.9) / (1 - 0.999) ** 0.5 + 1e-6),
    (optabs.adam_abs(1.0), (1 - 0.9) / (1 - 0.999)),
    (optabs.adam_abs(1.0, steady=True), (1 - 0.9) / (1 - 0.999)),
    (optabs.adam_abs(1.0, 0.9, 0.9), 1.0),
    (optabs.adam_abs(1.0, steady=True, max_ratio=1.0), 1.0),
    (optabs.adamw_abs(1.0, weight_decay=0.0, max_ratio=0.5), 0.5),
    (optabs.nadam_abs(1.0, max_ratio=1.0), 1.0),
    (optabs.rmsprop(1.0, 0.96), 5.0),
    (optabs.rmsprop(1.0, 0.96, max_ratio=1.0), 1.0),
    (optabs.rmsprop_abs(1.0, 0.99), 100.0),
    (optabs.rmsprop_abs(1.0, 0.99, steady=True), 100.0),
    (optabs.rmsprop_abs(1.0, 0.99, max_ratio=2.0), 2.0),
    (optabs.adagrad(1.0), 1.0),
    (optabs.adagrad_abs(1.0), 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "bound"), BOUNDED)
@quick
@given(run=gradient_runs())
def test_no_step_exceeds_the_stated_bound(
    optimizer: Any, bound: float, run: list[Any]
) -> None:
    params = jax.tree.map(np.zeros_like, run[0])
    with jax.enable_x64(True):
        state = optimizer.init(jax.tree.map(jnp.asarray, params))
        for grads in run:
            updates, state = optimizer.update(grads, state, params)
            for leaf in jax.tree.leaves(updates):
                assert np.all(np.abs(leaf) <= bound * (1 + 1e-9))


@pytest.mark.parametrize("steady", [False, True])
def test_the_bound_of_abs_is_reached_by_a_gradient_after_zeros(steady: bool) -> None:
    optimizer = optabs.adam_abs(1.0, 0.9, 0.99, eps=0.0, steady=steady)
    with jax.enable_x64(True):
        state = jax.lax.fori_loop(
            0,
            2000,
            lambda _, state: optimizer.update(jnp.full(1, 1e-200), state)[1],
            optimizer.init(jnp.zeros(1)),
        )
        updates, _ = optimizer.update(jnp.ones(1), state)
    assert float(updates[0]) == pytest.approx(-10.0, rel=1e-6)


@pytest.mark.slow
@quick
@given(gradient_runs(), st.floats(1e-6, 1e6))
def test_ratios_do_not_depend_on_the_scale_of_the_gradient(
    run: list[Any], scale: float
) -> None:
    scaled = [jax.tree.map(lambda g: g * scale, grads) for grads in run]
    steady = optabs.scale_by_ratio(
        optabs.ema(0.9, bias_correction=True), optabs.rising_abs(0.999), eps=1e-300
    )
    assert each(
        lambda a, b: np.isclose(a, b, rtol=1e-9, atol=1e-200),
        emitted(steady, run),
        emitted(steady, scaled),
    )


@pytest.mark.parametrize(
    "optimizer",
    [optabs.adam_abs(0.1), optabs.adam_abs(0.1, steady=True), optabs.rmsprop_abs(
        0.1, bias_correction=True), optabs.rmsprop_abs(0.1, steady=True)],
)  # fmt: skip
def test_a_gradient_of_constant_size_gives_sign_steps(optimizer: Any) -> None:
    params = jnp.zeros(2)
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(jnp.array([3.0, -0.02]), state, params)
        np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=1e-5)


def test_extra_arguments_reach_both_parts() -> None:
    seen = []

    def listening(name: str) -> optax.GradientTransformationExtraArgs:
        def update(
            updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any
        ) -> Any:
            seen.append((name, value))
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    ratio = optabs.scale_by_ratio(listening("numerator"), listening("denominator"))
    ratio.update(jnp.ones(1), ratio.init(jnp.ones(1)), value=7.0)
    assert seen == [("numerator", 7.0), ("denominator", 7.0)]


def test_full_precision_rounds_once() -> None:
    """Two bfloat16 roundings in a row, ratio and rate, would miss the nearest value."""
    gradient = jnp.array([1.0 + 2**-7], jnp.bfloat16)
    parts = (
        optabs.scale_by_ratio(optax.identity(), optabs.mean_abs(0.75)),
        optax.scale_by_learning_rate(0.3),
    )
    once, _ = (t := optabs.full_precision(optax.chain(*parts))).update(
        gradient, t.init(gradient)
    )
    exact = jnp.array([-0.3 * 4], jnp.float32).astype(jnp.bfloat16)
    assert once.dtype == jnp.bfloat16
    assert once[0] == exact[0]


def conversions(
    optimizer: optax.GradientTransformation, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[tuple[str, str], int], int]:
    """What an update of one bfloat16 leaf converts, and how often `widen` is called."""
    asked = []
    widen = _numerics.widen
    params = jnp.zeros(3, jnp.bfloat16)
    state = optimizer.init(params)
    monkeypatch.setattr(_numerics, "widen", lambda leaf: asked.append(leaf) or widen(leaf))
    program = jax.make_jaxpr(optimizer.update)(params, state, params)
    pairs = [
        (equation.invars[0].aval.dtype.name, equation.outvars[0].aval.dtype.name)
        for equation in program.eqns
        if equation.primitive.name == "convert_element_type"
    ]
    return collections.Counter(pair for pair in pairs if "bfloat16" in pair), len(asked)


@pytest.mark.parametrize("case", NAMED, ids=str)
def test_a_leaf_is_widened_once_and_narrowed_once(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted, asked = conversions(case.make(), monkeypatch)
    # The gradient and the parameters.
    assert converted == {("bfloat16", "float32"): 2, ("float32", "bfloat16"): 1}
    assert asked == 2


def test_a_chain_of_public_parts_rounds_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = optax.chain(optabs.ema(0.9), optabs.sgd(0.1))
    converted, asked = conversions(parts, monkeypatch)
    assert converted == {("bfloat16", "float32"): 4, ("float32", "bfloat16"): 2}
    assert asked == 4
    once = conversions(optabs.full_precision(parts), monkeypatch)[0]
    assert once == {("bfloat16", "float32"): 2, ("float32", "bfloat16"): 1}


@pytest.mark.parametrize(
    "part",
    [
        optabs.rms(0.9),
        optabs.mean_abs(0.9),
        optabs.root_sum_squares(),
        optabs.sum_abs(),
        optabs.rising_rms(0.9),
        optabs.rising_abs(0.9),
        optabs.running_max(),
    ],
)
def test_a_size_keeps_its_dtype_under_wider_gradients(
    part: optax.GradientTransformation,
) -> None:
    with jax.enable_x64(True):
        state = part.init(jnp.zeros(2, jnp.float32))
        _, new = part.update(jnp.full(2, 1e100), state)
        assert avals(new) == avals(state)
        # What float32 does not reach is its largest number.
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


class TestNagEvalParams:
    """It finds its state wherever optax's wrappers put it."""

    def wrappers(self) -> dict[str, optax.GradientTransformation]:
        nag = optabs.nag(0.1)
        return {
            "chain": optax.chain(optax.clip(10.0), nag),
            "masked": optax.masked(nag, {"a": True, "b": False}),
            "MultiSteps": optax.MultiSteps(nag, 1).gradient_transformation(),
            "inject_hyperparams": optax.inject_hyperparams(optabs.nag)(learning_rate=0.1),
            "apply_if_finite": optax.apply_if_finite(nag, 3),
        }

    @pytest.mark.parametrize(
        "name", ["chain", "masked", "MultiSteps", "inject_hyperparams", "apply_if_finite"]
    )
    def test_inside(self, name: str) -> None:
        optimizer = self.wrappers()[name]
        params = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
        state = optimizer.init(params)
        grads = {"a": jnp.array([1.0]), "b": jnp.array([0.0])}
        updates, state = optimizer.update(grads, state, params)
        ahead = optax.apply_updates(params, updates)
        theta = optabs.nag_eval_params(state, ahead)
        # v = 0.1, so theta = 1 - 0.1 * 0.1 and the look-ahead is 0.009 further.
        assert float(theta["a"][0]) == pytest.approx(0.99)
        assert float(ahead["a"][0]) == pytest.approx(0.981)
        assert float(theta["b"][0]) == 2.0

    def test_another_optimizers_state_is_refused(self) -> None:
        params = jnp.zeros(1)
        with pytest.raises(ValueError, match="state holds 0 NagState; pass nag_eval_params"):
            optabs.nag_eval_params(optabs.adam(0.1).init(params), params)
