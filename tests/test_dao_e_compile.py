"""The compiled step of DAO-E grows as its leaves do, and no faster."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from optabs import Controller
from optabs.ensemble.scalars import barrier

STEADY = 1.15
"""How many times as many lines a later leaf may add as an earlier one."""

FORMS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "default": lambda: optabs.dao_e(1e-3),
    "uniform": lambda: optabs.dao_e(1e-3, controller=Controller.uniform()),
    "one expert": lambda: optabs.dao_e(experts={"adam": optabs.adam(1e-3)}),
    "features": lambda: optabs.dao_e(1e-3, features=optabs.features.LEARNING),
}


def lines(optimizer: optax.GradientTransformation, leaves: int) -> int:
    """Of the optimized program of a step with so many small arrays."""
    params = {f"w{i}": jnp.ones((16, 16) if i % 2 else 16) for i in range(leaves)}

    def step(grads: Any, params: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step).lower(params, params, state).compile()
    return (compiled.as_text() or "").count("\n")


def growth(optimizer: optax.GradientTransformation) -> float:
    """The lines that each of the later leaves adds, over those of each of the first."""
    few, more, many = (lines(optimizer, leaves) for leaves in (4, 8, 16))
    return (many - more) / 8 / ((more - few) / 4)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[pytest.mark.slow] if form == "features" else [])
        for form in FORMS
    ],
)
def test_a_leaf_adds_as_much_among_many_as_among_few(form: str) -> None:
    assert growth(FORMS[form]()) <= STEADY


def test_what_each_leaf_does_with_all_the_others_grows_faster() -> None:
    """A control: the number of lines has a share that is the square of the leaves'."""

    def update(updates: Any, params: Any) -> Any:
        leaves, structure = jax.tree.flatten(updates)
        ends = [leaf[(-1,) * leaf.ndim] for leaf in leaves]
        return jax.tree.unflatten(
            structure, [sum(end * leaf for end in ends) for leaf in leaves]
        )

    assert growth(optax.stateless(update)) > STEADY


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_barrier_changes_neither_numbers_nor_slopes(compiled: bool) -> None:
    def squares(x: jax.Array) -> jax.Array:
        number, flag, whole = barrier((x, x > 1, jnp.int32(3)))
        return jnp.sum(jnp.where(flag, whole * number**2, 0.0))

    x = jnp.arange(3.0)
    ways: Mapping[Any, Any] = {
        squares: 12.0,
        jax.grad(squares): [0.0, 0.0, 12.0],
        jax.jacfwd(squares): [0.0, 0.0, 12.0],
        jax.hessian(squares): np.diag([0.0, 0.0, 6.0]),
        jax.vmap(squares): [0.0, 0.0, 12.0],
        jax.vmap(jax.grad(squares)): [0.0, 0.0, 12.0],
    }
    for way, wanted in ways.items():
        actual = (jax.jit(way) if compiled else way)(x)
        np.testing.assert_array_equal(actual, wanted)
