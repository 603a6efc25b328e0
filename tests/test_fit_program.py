"""`fit`: its compiled program, and what it takes: optimizers, dtypes, models, shardings."""

import io
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from regression import (
    ADAM,
    COUNT,
    KEY,
    SGD,
    assert_close,
    loss_fn,
)

import optabs
from optabs.training import loop, program


@pytest.mark.slow
def test_what_is_given_is_neither_changed_nor_donated() -> None:
    params, data = regression.params(), regression.data()
    first = optabs.fit(loss_fn, params, optabs.adam(0.1), data, epochs=2)
    kept = jax.tree.map(np.asarray, first.opt_state)
    optabs.fit(loss_fn, params, optabs.adam(0.1), data, epochs=2, opt_state=first.opt_state)
    chex.assert_trees_all_equal(params, regression.params(), strict=True)
    chex.assert_trees_all_equal(first.opt_state, kept, strict=True)


def test_one_compilation_for_all_epochs_and_for_later_runs() -> None:
    optimizer = optabs.adam(0.05)
    traces = []

    def loss(params: Any, batch: Any) -> jax.Array:
        traces.append(1)
        return loss_fn(params, batch)

    def train(**options: Any) -> None:
        optabs.fit(
            loss, regression.params(), optimizer, regression.data(), batch_size=5, **options
        )

    train(epochs=2)
    first = len(traces)
    train(epochs=2)
    checks = len(traces) - first  # abstract traces before training
    train(epochs=300, key=KEY, tolerance=1e-30)
    assert len(traces) == first + 2 * checks


def test_a_thousand_epochs_take_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def advance(*args: Any) -> Any:
        calls.append(args)
        return program.advance(*args)

    monkeypatch.setattr(loop, "advance", advance)
    # The clock decides how many steps a call makes; one that stands still makes them grow.
    monkeypatch.setattr(loop.time, "monotonic", lambda: 0.0)
    result = optabs.fit(loss_fn, regression.params(), SGD, regression.data(), epochs=3000)
    assert len(result.history["loss"]) == 3000
    assert len(calls) < 10


def test_the_run_is_donated() -> None:
    optimizer = optax.with_extra_args_support(optabs.adam(0.1))
    plan = program.Plan(loss_fn, optimizer, 5, "shuffle", (), False)
    run = program.start(plan, regression.params(), None, jax.ShapeDtypeStruct((), jnp.float32))
    inputs = program.Inputs(KEY, regression.data(), None)
    program.advance(plan, run, inputs, program.Limits(3, 1, 0.0, 0.0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run))


def test_extra_arguments_reach_the_optimizer() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        value = extra["value_fn"](params)
        wrong = jnp.abs(value - extra["value"]) + jnp.abs(
            loss_fn(params, extra["batch"]) - value
        )
        return jax.tree.map(lambda u: -0.1 * u, extra["grad"]), jnp.maximum(state, wrong)

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    result = optabs.fit(
        loss_fn, regression.params(), optimizer, regression.data(), batch_size=5, epochs=3
    )
    assert float(result.opt_state) < 1e-6
    plain = optabs.fit(
        loss_fn, regression.params(), optax.sgd(0.1), regression.data(), batch_size=5, epochs=3
    )
    assert_close(result.params, plain.params)


def test_transformations_without_extra_arguments_compile_once_too() -> None:
    traces = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        traces.append(1)
        return jax.tree.map(lambda u: -0.1 * u, updates), state

    plain = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    for _ in range(3):
        optabs.fit(loss_fn, regression.params(), plain, regression.data(), epochs=2)
    assert len(traces) == 1


def test_label_checks_compile_once() -> None:
    traces = []

    def loss(params: Any, batch: Any) -> jax.Array:
        traces.append(1)
        inputs, labels = batch
        return optabs.losses.hinge(inputs @ params["w"], labels).mean()

    data = (regression.data()[0], jnp.zeros(COUNT, jnp.int32))
    counts = []
    for _ in range(3):
        before = len(traces)
        optabs.fit(loss, regression.params(), SGD, data, batch_size=5, epochs=1)
        counts.append(len(traces) - before)
    assert counts[1] == counts[2] <= 2  # abstract traces only
    assert counts[0] > counts[1]


def test_multi_steps_is_taken_as_it_is() -> None:
    many = optax.MultiSteps(optax.sgd(0.1), 2)
    ours = optabs.fit(loss_fn, regression.params(), many, regression.data(), epochs=4)
    two = optabs.fit(loss_fn, regression.params(), SGD, regression.data(), epochs=2)
    assert_close(ours.params, two.params)


@pytest.mark.slow
def test_line_searches_and_plateaus_work() -> None:
    result = optabs.fit(
        loss_fn, regression.params(), optax.lbfgs(), regression.data(), epochs=20
    )
    solution = np.linalg.lstsq(
        np.column_stack([regression.data()[0], np.ones(COUNT)]), regression.data()[1]
    )[0]
    np.testing.assert_allclose(result.params["w"], solution[:3], atol=1e-3)
    plateau = optax.chain(optabs.adam(0.1), optax.contrib.reduce_on_plateau(patience=2))
    optabs.fit(loss_fn, regression.params(), plateau, regression.data(), epochs=5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_are_kept(dtype: Any) -> None:
    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    result = optabs.fit(
        loss_fn, cast(regression.params()), optabs.adam(0.1), cast(regression.data()), epochs=3
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(dtype)}


def test_double_precision() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.ones((3, 2), jnp.float64), "b": jnp.zeros((1, 2), jnp.float64)}
        data = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), regression.data())
        result = optabs.fit(loss_fn, params, SGD, data, epochs=3)
        assert result.params["w"].dtype == jnp.float64


@pytest.mark.slow
def test_a_flax_model() -> None:
    model = nnx.Sequential(
        nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    )
    graph, params = nnx.split(model)

    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch
        return optabs.losses.mse(nnx.merge(graph, params)(inputs), targets).mean()

    before = loss(params, regression.data())
    result = optabs.fit(loss, params, ADAM, regression.data(), batch_size=8)
    nnx.update(model, result.params)
    assert loss(nnx.state(model), regression.data()) < before / 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("size", [None, 16, 6])
def test_sharded_data_train_as_on_one_device(kind: AxisType, size: int | None) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    options: Any = {"batch_size": size, "epochs": 3, "key": KEY}
    plain = optabs.fit(loss_fn, regression.params(), ADAM, regression.data(40), **options)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("x", None))
        everywhere = NamedSharding(mesh, PartitionSpec())
        data = jax.device_put(regression.data(40), rows)
        params = jax.device_put(regression.params(), everywhere)
        sharded = optabs.fit(loss_fn, params, ADAM, data, **options)
    assert_close(sharded.params, plain.params)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
def test_the_bar_shows_the_loss_where_there_is_a_terminal(
    terminal: bool, progress: bool | None, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    optabs.fit(
        loss_fn,
        regression.params(),
        SGD,
        regression.data(),
        epochs=20,
        progress=progress,
    )
    written = stream.getvalue()
    assert bool(written) == shown
    if shown:
        assert "20/20" in written
        assert "loss " in written


def test_the_bar_bears_a_first_loss_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.warns(RuntimeWarning, match="at step 1"):
        optabs.fit(lambda params, batch: params * jnp.nan, 1.0, SGD, jnp.arange(4.0))


def test_normal_like() -> None:
    like = {"w": jax.ShapeDtypeStruct((200, 100), jnp.float32), "h": jnp.zeros(4, jnp.float16)}
    drawn = optabs.normal_like(jax.random.key(3), like, stddev=0.5)
    assert drawn["h"].dtype == jnp.float16
    np.testing.assert_allclose(drawn["w"].mean(), 0.0, atol=0.02)
    np.testing.assert_allclose(drawn["w"].std(), 0.5, rtol=0.02)
    chex.assert_trees_all_equal(
        drawn, optabs.normal_like(jax.random.key(3), like, stddev=0.5), strict=True
    )
    with pytest.raises(ValueError, match=r"stddev is -1; pass a finite number that is 0 or"):
        optabs.normal_like(jax.random.key(3), like, stddev=-1)
