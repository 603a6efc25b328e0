"""`fit`: its loops against loops by hand, its convergence tests, its compiled program."""

import io
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from regression import COUNT, loss_fn

import optabs
from optabs.training import loop, program

KEY = jax.random.key(7)
# One object for many tests: a program is compiled once for an optimizer.
ADAM, SGD = optabs.adam(0.05), optabs.sgd(0.1)


def by_hand(
    optimizer: optax.GradientTransformation, batches: list[Any], **options: Any
) -> tuple[Any, list[float]]:
    """Parameters and losses after a step on each batch, one by one."""

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = regression.params()
    state, losses = optimizer.init(params), []
    for batch in batches:
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    return params, losses


def rows_of(batch: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[np.asarray(rows)], batch)


def assert_same(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def assert_close(ours: Any, theirs: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, theirs
    )


def shuffled(epochs: int, size: int) -> list[Any]:
    """The batches of `fit`'s epochs: a permutation each, the last batch short."""
    found = []
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.fold_in(KEY, epoch), COUNT)
        found += [order[start : start + size] for start in range(0, COUNT, size)]
    return [rows_of(regression.data(), rows) for rows in found]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adam_abs"])
def test_vanilla_descent_is_the_loop_by_hand(name: str) -> None:
    optimizer = getattr(optabs, name)(0.05)
    result = optabs.fit(loss_fn, regression.params(), optimizer, regression.data(), epochs=30)
    params, losses = by_hand(optimizer, [regression.data()] * 30)
    assert_close(result.params, params)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    assert (result.steps, result.converged) == (30, False)
    assert result.message == "not converged: stopped after 30 epochs, 30 steps."


@pytest.mark.parametrize("size", [1, 5, 11, COUNT])
def test_mini_batches_are_the_loop_by_hand(size: int) -> None:
    optimizer = ADAM
    result = optabs.fit(
        loss_fn,
        regression.params(),
        optimizer,
        regression.data(),
        batch_size=size,
        epochs=3,
        key=KEY,
    )
    params, losses = by_hand(optimizer, shuffled(3, size))
    assert_close(result.params, params)
    per_epoch = np.reshape(losses, (3, -1)).mean(axis=1)
    np.testing.assert_allclose(result.history["loss"], per_epoch, rtol=1e-5)
    assert result.steps == len(losses)


def test_random_batches_are_full_and_drawn_with_replacement() -> None:
    seen = []

    def loss(params: Any, batch: Any) -> jax.Array:
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), batch, ordered=True)
        return params**2

    optabs.fit(loss, 1.0, SGD, jnp.arange(10), batch_size=4, epochs=50, sampling="random")
    jax.effects_barrier()
    rows = np.stack([batch for batch in seen if batch.shape == (4,)])
    assert rows.shape == (150, 4)  # as many batches as shuffling has, none short
    share = np.bincount(rows.ravel(), minlength=10) / rows.size
    np.testing.assert_allclose(share, 0.1, atol=0.04)
    assert any(len(set(batch)) < 4 for batch in rows.tolist())


def test_an_epoch_visits_every_instance_once_in_another_order() -> None:
    seen = []

    def loss(params: Any, batch: Any) -> jax.Array:
        jax.debug.callback(lambda rows: seen.extend(rows.tolist()), batch, ordered=True)
        return params**2

    optabs.fit(loss, 1.0, SGD, jnp.arange(10), batch_size=4, epochs=2)
    jax.effects_barrier()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_keys_give_other_orders_and_the_same_key_the_same_bits() -> None:
    def trained(key: jax.Array | None) -> Any:
        return optabs.fit(
            loss_fn,
            regression.params(),
            ADAM,
            regression.data(),
            batch_size=5,
            epochs=3,
            key=key,
        ).params

    assert_same(trained(None), trained(jax.random.key(0)))
    assert not np.array_equal(trained(None)["w"], trained(jax.random.key(1))["w"])
    trained(jax.random.PRNGKey(1))  # the raw form is taken too


def test_loss_tolerance_stops_where_the_loss_changes_by_less() -> None:
    result = optabs.fit(
        loss_fn,
        regression.params(),
        SGD,
        regression.data(),
        epochs=10_000,
        tolerance=1e-4,
    )
    changes = np.abs(np.diff(result.history["loss"]))
    assert result.converged
    assert changes[-1] < 1e-4 <= changes[:-1].min()
    assert result.message.startswith(
        "converged: the loss changed by less than 0.0001 in epoch"
    )


def test_params_tolerance_stops_where_no_parameter_moves_by_more() -> None:
    def after(epochs: int, **tolerances: float) -> Any:
        return optabs.fit(
            loss_fn,
            regression.params(),
            SGD,
            regression.data(),
            epochs=epochs,
            **tolerances,
        )

    result = after(10_000, params_tolerance=1e-3)
    assert result.converged
    assert "no parameter changed by 0.001 in epoch" in result.message
    last, before, earlier = (after(result.steps - back).params for back in range(3))

    def change(new: Any, old: Any) -> float:
        return max(float(jnp.abs(new[name] - old[name]).max()) for name in new)

    assert change(last, before) < 1e-3 <= change(before, earlier)
    both = after(10_000, params_tolerance=1e-3, tolerance=1e-1)
    assert both.converged
    assert both.steps < result.steps  # the first test that is met stops it


def test_max_steps_stops_inside_an_epoch_which_keeps_a_row() -> None:
    def after(steps: int | None) -> Any:
        return optabs.fit(
            loss_fn,
            regression.params(),
            ADAM,
            regression.data(),
            batch_size=5,
            epochs=2,
            key=KEY,
            max_steps=steps,
            validation_data=regression.data(4),
        )

    result = after(7)
    params, losses = by_hand(ADAM, shuffled(2, 5)[:7])
    assert_close(result.params, params)
    np.testing.assert_allclose(
        result.history["loss"], [np.mean(losses[:5]), np.mean(losses[5:])], rtol=1e-5
    )
    assert result.steps == 7
    assert len(result.history["validation_loss"]) == 2
    assert after(1000).steps == after(None).steps == 10


def test_validation_loss_and_metrics_are_taken_at_the_end_of_each_epoch() -> None:
    validation = regression.data(6)

    def largest(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch
        return jnp.abs(inputs @ params["w"] + params["b"] - targets).max()

    result = optabs.fit(
        loss_fn,
        regression.params(),
        SGD,
        regression.data(),
        epochs=3,
        validation_data=validation,
        metrics={"largest": largest},
    )
    assert {name: len(row) for name, row in result.history.items()} == {
        "loss": 3,
        "validation_loss": 3,
        "largest": 3,
    }
    last = {"validation_loss": loss_fn, "largest": largest}
    for name, function in last.items():
        value = function(result.params, validation)
        np.testing.assert_allclose(result.history[name][-1], value, rtol=1e-6)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_parameters_before() -> None:
    inputs, targets = regression.data()
    poisoned = (inputs.at[13, 0].set(jnp.nan), targets)
    order = jax.random.permutation(jax.random.fold_in(KEY, 0), COUNT).tolist()
    bad = order.index(13)  # the first step whose loss is not finite
    with pytest.warns(RuntimeWarning, match=f"not finite at step {bad + 1}, in epoch 1; "):
        result = optabs.fit(
            loss_fn,
            regression.params(),
            ADAM,
            poisoned,
            batch_size=1,
            key=KEY,
        )
    assert (result.steps, result.converged) == (bad - 1, False)
    assert "the result is of the step before" in result.message
    params, _ = by_hand(ADAM, shuffled(1, 1)[: bad - 1])
    assert_close(result.params, params)
    shorter = optabs.fit(
        loss_fn,
        regression.params(),
        ADAM,
        poisoned,
        batch_size=1,
        key=KEY,
        max_steps=bad - 1,
    )
    for name in ("params", "opt_state", "history"):
        assert_same(getattr(result, name), getattr(shorter, name))


def test_divergence_leaves_parameters_whose_loss_is_finite() -> None:
    with pytest.warns(RuntimeWarning, match="loss is not finite"):
        result = optabs.fit(
            loss_fn, regression.params(), optabs.sgd(1e3), regression.data(), epochs=100
        )
    assert 0 < result.steps < 100
    assert np.isfinite(loss_fn(result.params, regression.data()))


def test_a_first_loss_that_is_not_finite_gives_the_parameters_back() -> None:
    params = {"w": jnp.full((3, 2), jnp.inf), "b": jnp.zeros((1, 2))}
    with pytest.warns(RuntimeWarning, match="at step 1, in epoch 1"):
        result = optabs.fit(loss_fn, params, SGD, regression.data())
    assert_same(result.params, params)
    assert result.steps == 0
    assert result.history == {}


def test_going_on_from_a_state_is_one_longer_run() -> None:
    def train(epochs: int, params: Any, state: Any = None) -> Any:
        return optabs.fit(
            loss_fn,
            params,
            ADAM,
            regression.data(),
            epochs=epochs,
            opt_state=state,
        )

    first = train(4, regression.params())
    second = train(5, first.params, first.opt_state)
    assert_same(second.params, train(9, regression.params()).params)


def test_what_is_given_is_neither_changed_nor_donated() -> None:
    params, data = regression.params(), regression.data()
    first = optabs.fit(loss_fn, params, optabs.adam(0.1), data, epochs=2)
    kept = jax.tree.map(np.asarray, first.opt_state)
    optabs.fit(loss_fn, params, optabs.adam(0.1), data, epochs=2, opt_state=first.opt_state)
    assert_same(params, regression.params())
    assert_same(first.opt_state, kept)


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
    compiled = program.advance._cache_size()
    first = len(traces)
    train(epochs=2)
    checks = len(traces) - first  # abstract traces before training
    train(epochs=300, key=KEY, tolerance=1e-30)
    assert program.advance._cache_size() == compiled
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


def test_normal_like() -> None:
    like = {"w": jax.ShapeDtypeStruct((200, 100), jnp.float32), "h": jnp.zeros(4, jnp.float16)}
    drawn = optabs.normal_like(jax.random.key(3), like, stddev=0.5)
    assert drawn["h"].dtype == jnp.float16
    np.testing.assert_allclose(drawn["w"].mean(), 0.0, atol=0.02)
    np.testing.assert_allclose(drawn["w"].std(), 0.5, rtol=0.02)
    assert_same(drawn, optabs.normal_like(jax.random.key(3), like, stddev=0.5))
    with pytest.raises(ValueError, match=r"stddev is -1; pass a finite number that is 0 or"):
        optabs.normal_like(jax.random.key(3), like, stddev=-1)
