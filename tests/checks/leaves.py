"""Leaves out of the ordinary: Python numbers, and arrays without entries."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import Case
from trees import (
    assert_close,
    assert_equal,
    avals,
    compiled,
    gradients,
    params,
    plain,
    run,
    step,
    trained,
)

from checks.registry import check


def _as_number(tree: Any) -> Any:
    return {**tree, "scale": float(tree["scale"])}


@check(where="keeps_dtype")
def check_python_numbers_are_scalars(case: Case) -> None:
    """A Python float among the parameters is an array of shape () and float32."""
    optimizer = case.make()
    position, grads = params(), gradients()
    wanted = plain(case)
    numbers, number_grads = _as_number(position), list(map(_as_number, grads))
    for given in (grads, number_grads):
        found = run(case, optimizer, numbers, given)
        assert_equal(found, wanted)
        assert avals(found) == avals(wanted)
    traced = jax.eval_shape(optimizer.init, numbers)
    assert avals(traced) == avals(wanted[1])
    updates = jax.eval_shape(
        lambda *trees: step(case, optimizer, *trees), number_grads[0], traced, numbers
    )
    assert avals(updates) == avals((wanted[0][0], wanted[1]))


@check(instead_of=check_python_numbers_are_scalars)
def check_wide_params_are_refused(case: Case) -> None:
    """A row that trains narrow parameters takes no others to update, and says so."""
    optimizer = case.make_eager()
    position, grads = params(), gradients(1)[0]
    state = optimizer.init(position)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), position)
    for given in (wide, _as_number(position)):
        with pytest.raises(ValueError, match=r"params.* came as float32") as error:
            step(case, optimizer, grads, state, given)
        message = str(error.value)
        assert case.dtype in message, message
        assert message.endswith("."), message
        assert "\n" not in message, message
        assert len(message) <= 300, message


def _with_empty(tree: Any) -> Any:
    empty = {"matrix": jnp.zeros((4, 0)), "vector": jnp.zeros(0)}
    return {"tree": tree, **trained(empty)}


@check(variants=("eager", "compiled"))
def check_empty_arrays_change_nothing(case: Case, mode: str) -> None:
    """An array without entries has an update like itself; the others step as without it."""
    optimizer = case.make_eager()
    grads = gradients(2)
    wanted = plain(case)[0][:2]
    position, grads = _with_empty(params()), list(map(_with_empty, grads))
    updates, state = run(case, optimizer, position, grads)
    if mode == "compiled":
        found = run(case, compiled(optimizer), position, grads)
        assert_close(found, (updates, state), rtol=1e-5)
        return
    # Coupled leaves are summed in another order where there are more of them.
    rtol = 0.0 if case.apart else 1e-5
    assert_close(updates, list(map(_with_empty, wanted)), rtol)
