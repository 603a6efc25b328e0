"""Small parameters and gradients, and what the checks do with them."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import Case, with_compiled_update

import optabs

NARROW = ("float16", "bfloat16")
SHAPES = {"layer": {"w": (3, 2), "b": (2,)}, "scale": ()}


def tree(seed: int, dtype: Any = jnp.float32) -> Any:
    """Entries of every leaf away from 0, the same for the same seed."""
    random = np.random.default_rng(seed)
    dtype = _dtype if jnp.dtype(dtype) == jnp.float32 else dtype

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        size = random.uniform(0.5, 2.0, shape) * random.choice([-1.0, 1.0], shape)
        return jnp.asarray(size, dtype)

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def params(dtype: Any = jnp.float32) -> Any:
    return tree(0, dtype)


def gradients(count: int = 3, dtype: Any = jnp.float32) -> list[Any]:
    return [tree(1 + i, dtype) for i in range(count)]


def filled(like: Any, value: float) -> Any:
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), like)


def step(case: Case, optimizer: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    return optimizer.update(grads, state, params, **case.extra)


def run(
    case: Case,
    optimizer: Any,
    start: Any = None,
    grads: Sequence[Any] | None = None,
    state: Any = None,
) -> tuple[list[Any], Any]:
    """The updates for a list of gradients, and the last state."""
    position = params() if start is None else start
    state = optimizer.init(position) if state is None else state
    emitted = []
    for gradient in gradients() if grads is None else grads:
        updates, state = step(case, optimizer, gradient, state, position)
        position = optax.apply_updates(position, updates)
        emitted.append(updates)
    return emitted, state


@functools.cache
def plain(case: Case) -> tuple[list[Any], Any]:
    """What the row does by itself: run(case, case.make())."""
    return run(case, case.make())


def compiled(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    return with_compiled_update(optimizer)._replace(init=jax.jit(optimizer.init))


def with_traced(
    case: Case, transform: Callable[[Any], Any] = lambda function: function
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """The row's factory, its numbers arguments of functions that are compiled once."""

    def start(numbers: Any, params: Any) -> Any:
        return case.make(**numbers).init(params)

    def advance(numbers: Any, grads: Any, state: Any, params: Any) -> Any:
        return step(case, case.make(**numbers), grads, state, params)

    init, update = jax.jit(transform(start)), jax.jit(transform(advance))
    return lambda **numbers: optax.GradientTransformationExtraArgs(
        functools.partial(init, numbers),
        lambda grads, state, params, **extra: update(numbers, grads, state, params),
    )


_error = 0.0  # of what a row's state may lose between two steps
_dtype = "float32"  # of a row's parameters
_ENTRIES = 0.1  # about the size of the compared updates


@contextlib.contextmanager
def declared(case: Case) -> Iterator[None]:
    """Compares no closer than a row's error, states by what they decode to; and makes its
    parameters in its dtype."""
    global _dtype, _error
    previous, (_error, _dtype) = (_error, _dtype), (case.error, case.dtype)
    try:
        yield
    finally:
        _error, _dtype = previous


def trained(tree: Any) -> Any:
    """Arrays of float32 as a row's parameters are."""
    if _dtype == "float32":
        return tree
    return jax.tree.map(
        lambda leaf: leaf.astype(_dtype) if leaf.dtype == jnp.float32 else leaf, tree
    )


def assert_close(actual: Any, wanted: Any, rtol: float = 1e-6, atol: float = 0.0) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    if _error:
        actual, wanted = optabs.decode_state((actual, wanted))
        rtol, atol = max(rtol, _error), max(atol, _ENTRIES * _error)

    def same(path: Any, a: Any, w: Any) -> None:
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(a), np.asarray(w), rtol, atol, err_msg=where)

    jax.tree_util.tree_map_with_path(same, actual, wanted)


def assert_equal(actual: Any, wanted: Any) -> None:
    assert_close(actual, wanted, rtol=0.0)


def avals(tree: Any) -> Any:
    """Shape, dtype and weak type of every leaf."""
    return jax.tree.map(
        lambda leaf: (
            (leaf.shape, leaf.dtype.name, leaf.aval.weak_type)
            if isinstance(leaf, jax.Array)
            else (leaf.shape, leaf.dtype.name, leaf.weak_type)
        ),
        tree,
    )
