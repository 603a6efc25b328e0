"""`fit`: its loops against loops by hand, and its tests of convergence."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regression
from regression import (
    ADAM,
    COUNT,
    KEY,
    SGD,
    assert_close,
    by_hand,
    loss_fn,
    shuffled,
)

import optabs


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adam_abs"])
def test_vanilla_descent_is_the_loop_by_hand(name: str) -> None:
    optimizer = getattr(optabs, name)(0.05)
    result = optabs.fit(loss_fn, regression.params(), optimizer, regression.data(), epochs=30)
    params, losses = by_hand(optimizer, [regression.data()] * 30)
    assert_close(result.params, params)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    assert (result.steps, result.converged) == (30, False)
    assert result.message == "not converged: stopped after 30 epochs, 30 steps."


@pytest.mark.slow
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


@pytest.mark.slow
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

    chex.assert_trees_all_equal(trained(None), trained(jax.random.key(0)), strict=True)
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


@pytest.mark.slow
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

    def close(params: Any, batch: Any) -> jax.Array:
        return largest(params, batch) < 1.0

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
        metrics={"largest": largest, "close": close},
    )
    assert {name: len(row) for name, row in result.history.items()} == {
        "loss": 3,
        "validation_loss": 3,
        "largest": 3,
        "close": 3,
    }
    last = {"validation_loss": loss_fn, "largest": largest, "close": close}
    for name, function in last.items():
        value = function(result.params, validation)
        np.testing.assert_allclose(result.history[name][-1], value, rtol=1e-6)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_parameters_before() -> None:
    inputs, targets = regression.data()
    poisoned = (inputs.at[13, 0].set(jnp.nan), targets)
    order = jax.random.permutation(jax.random.fold_in(KEY, 0), COUNT).tolist()
    bad = order.index(13)  # the first step whose loss is not finite
    with pytest.warns(RuntimeWarning, match=f"not finite at step {bad + 1}, in epoch 1: "):
        result = optabs.fit(
            loss_fn,
            regression.params(),
            ADAM,
            poisoned,
            batch_size=1,
            key=KEY,
        )
    assert (result.steps, result.converged) == (bad - 1, False)
    assert result.message.endswith(f"after {bad - 1} updates, the last that was finite.")
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
        chex.assert_trees_all_equal(getattr(result, name), getattr(shorter, name), strict=True)


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
    chex.assert_trees_all_equal(result.params, params, strict=True)
    assert result.steps == 0
    assert result.history["loss"].shape == (0,)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_a_gradient_that_is_not_finite_under_a_finite_loss(epochs: int) -> None:
    def loss(params: Any, row: Any) -> jax.Array:
        # At the seventh instance the slope of the root at 0 is infinite, and its value is 0.
        return jnp.sqrt(jnp.abs(params["w"][row])).sum() + (params["b"] ** 2).sum()

    params = {"w": jnp.ones(COUNT).at[7].set(0.0), "b": jnp.ones(2)}
    rows = jnp.arange(COUNT)
    order = jax.random.permutation(jax.random.fold_in(KEY, 0), COUNT).tolist()
    with pytest.warns(RuntimeWarning, match="params are not finite after step|loss is not fi"):
        result = optabs.fit(loss, params, SGD, rows, batch_size=1, epochs=epochs, key=KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    assert result.steps == order.index(7)


def test_parameters_that_never_were_finite_are_trained() -> None:
    def loss(params: Any, batch: Any) -> jax.Array:
        return (params["w"] ** 2).sum() + 0.0 * batch.sum()

    params = {"w": jnp.ones(3), "mask": jnp.array([0.0, -jnp.inf])}
    result = optabs.fit(loss, params, SGD, jnp.ones(4), epochs=3)
    assert result.steps == 3


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
    chex.assert_trees_all_equal(
        second.params, train(9, regression.params()).params, strict=True
    )
