"""DAO-E inside what JAX does to programs: shards, slopes of training, checks of numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from trees import assert_close, assert_equal

import optabs
from optabs import features

PARAMS = {"w": jnp.arange(8.0).reshape(4, 2) / 8, "b": jnp.ones(4)}
BATCH = {"x": jnp.arange(12.0).reshape(3, 4), "label": jnp.arange(3)}


def loss_of(params: Any, factor: Any = 1.0) -> jax.Array:
    return sum(jnp.sum((factor * leaf - 1) ** 2) for leaf in jax.tree.leaves(params))


def step(params: Any, state: Any, update: Callable[..., Any], factor: Any) -> tuple[Any, Any]:
    value, grads = jax.value_and_grad(loss_of)(params, factor)
    updates, state = update(grads, state, params, value=value, batch=BATCH)
    return optax.apply_updates(params, updates), state


def trained(
    optimizer: Any, params: Any, update: Callable[..., Any], steps: int = 2, factor: Any = 1.0
) -> tuple[Any, Any]:
    """Parameters and state after some steps."""
    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state, update, factor)
    return params, state


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("x")], ids=str)
def test_inside_shard_map(spec: PartitionSpec, check_vma: bool) -> None:
    """Each device trains its own part as it would alone."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    experts = {"adam": optabs.adam(0.01), "lion": optax.lion(0.01)}
    optimizer = optabs.dao_e(experts=experts)

    def train(params: Any) -> Any:
        return trained(optimizer, params, optimizer.update)[0]

    inside = jax.shard_map(
        train, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=check_vma
    )
    ours = jax.jit(inside)(PARAMS)
    alone = jax.jit(train)
    if spec == PartitionSpec():
        wanted = alone(PARAMS)
    else:
        halves = [alone({k: x[at] for k, x in PARAMS.items()}) for at in np.s_[:2, 2:]]
        wanted = jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)
    assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [(), features.ALL], ids=["none", "all"])
def test_slopes_of_training_are_the_same_forwards_and_backwards(chosen: Any) -> None:
    experts = {"a": optabs.adam_abs(0.1), "s": optabs.sgd(0.1)}
    optimizer = optabs.dao_e(experts=experts, features=chosen, previous="float32")

    def after(factor: jax.Array) -> jax.Array:
        start = jnp.array([0.3, -0.2])
        (params, _), _ = jax.lax.scan(
            lambda carry, _: (step(*carry, optimizer.update, factor), None),
            (start, optimizer.init(start)),
            length=6,
        )
        return jnp.sum(params**2)

    factor = jnp.array([1.0, 2.0])
    forwards, backwards = jax.jit(lambda x: (jax.jacfwd(after)(x), jax.grad(after)(x)))(factor)
    assert np.all(np.isfinite(backwards))
    assert np.all(np.abs(backwards) > 1e-3)
    # What the multiplier learns from is in bfloat16, and so are its tangents.
    np.testing.assert_allclose(backwards, forwards, rtol=5e-3)


@pytest.fixture
def _strict() -> Iterator[None]:
    """JAX raises where a NaN, or an infinity, is made."""
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


COMPILED = pytest.mark.parametrize(
    "compiled", [pytest.param(False, marks=pytest.mark.slow), True], ids=["eager", "jit"]
)


@pytest.mark.slow
@pytest.mark.usefixtures("_strict")
@COMPILED
@pytest.mark.parametrize("controller", [optabs.Controller(), optabs.Controller.paper()])
def test_healthy_training_makes_no_number_that_is_not_finite(
    controller: optabs.Controller, compiled: bool
) -> None:
    experts = {"adam": optabs.adam(0.01), "sgd": optabs.sgd(0.1)}
    optimizer = optabs.dao_e(experts=experts, features=features.ALL, controller=controller)
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    params, state = trained(optimizer, PARAMS, update)
    assert not np.array_equal(params["w"], PARAMS["w"])
    # Nor where no loss and no batch is told, and where the gradient is 0.
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = update(zeros, state, params)
    update(zeros, state, params)


class TestPythonScalars:
    """Leaves that are numbers of Python are arrays without axes."""

    @pytest.mark.slow
    @COMPILED
    def test_as_parameters_and_as_gradients(self, compiled: bool) -> None:
        optimizer = optabs.dao_e(0.01)
        update = jax.jit(optimizer.update) if compiled else optimizer.update
        ends = []
        for number in (float, jnp.float32):
            params = {"w": jnp.ones(3), "temperature": number(1.5)}
            state = optimizer.init(params)
            for _ in range(2):
                grads = {"w": jnp.arange(3.0), "temperature": number(0.5)}
                updates, state = update(grads, state, params)
                params = optax.apply_updates(params, updates)
            ends.append((params, state))
        assert_equal(*ends)
        assert float(ends[0][0]["temperature"]) < 1.5
