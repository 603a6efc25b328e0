"""The compiled steps of the largest programs grow as their leaves do, and no faster."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from optabs import Controller
from optabs.mixture.state import barrier

STEADY = 1.15
"""How many times as many lines a later leaf may add as an earlier one."""

FORMS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "narrow_state": lambda: optabs.narrow_state(optax.adam(1e-3), min_size=16),
    "dao_e": lambda: optabs.dao_e(1e-3),
    "uniform": lambda: optabs.dao_e(1e-3, controller=Controller.uniform()),
    "one expert": lambda: optabs.dao_e(experts={"adam": optabs.adam(1e-3)}),
    "features": lambda: optabs.dao_e(1e-3, features=optabs.features.ALL),
}


def program(optimizer: optax.GradientTransformation, params: Any) -> str:
    """The optimized text of a step."""

    def step(grads: Any, params: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(step).lower(params, params, state).compile().as_text() or ""


def lines(optimizer: optax.GradientTransformation, leaves: int) -> int:
    """Of the program of a step with so many small arrays."""
    params = {f"w{i}": jnp.ones((16, 16) if i % 2 else 16) for i in range(leaves)}
    return program(optimizer, params).count("\n")


def growth(optimizer: optax.GradientTransformation) -> float:
    """The lines that each of the later leaves adds, over those of each of the first."""
    few, more, many = (lines(optimizer, leaves) for leaves in (4, 8, 16))
    return (many - more) / 8 / ((more - few) / 4)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
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


def kernels(optimizer: optax.GradientTransformation, leaves: int) -> int:
    """Different kernels over leaves of one shape: XLA:CPU compiles equal ones once."""
    text = program(optimizer, {f"w{i}": jnp.ones((16, 16)) for i in range(leaves)})
    bodies = [part for part in text.split("\n\n") if part.lstrip().startswith("%fused")]
    plain = [re.sub(r", metadata=.*|(?<=[a-z_])[.\d]+", "", body) for body in bodies]
    return len({body for body in plain if "[16,16]" in body})


@pytest.mark.slow
@pytest.mark.parametrize("form", ["narrow_state", "dao_e"])
def test_leaves_of_one_shape_share_their_kernels(form: str) -> None:
    # The order in which equal kernels read their operands may differ.
    assert kernels(FORMS[form](), 8) < kernels(FORMS[form](), 4) + 4


def test_a_constant_of_its_own_gives_each_leaf_a_kernel() -> None:
    """A control."""

    def update(updates: Any, params: Any) -> Any:
        leaves, structure = jax.tree.flatten(updates)
        return jax.tree.unflatten(structure, [leaf / (3 + i) for i, leaf in enumerate(leaves)])

    assert kernels(optax.stateless(update), 8) == 2 * kernels(optax.stateless(update), 4)


@pytest.mark.slow
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
