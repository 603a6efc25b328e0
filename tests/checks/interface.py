"""What a training loop may pass, and what it may leave out."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import Case
from trees import assert_equal, gradients, params, plain, run, step

from checks.registry import check


@check()
def check_unknown_arguments_are_ignored(case: Case) -> None:
    optimizer = case.make_eager()
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    position, grads = params(), gradients(1)[0]
    given = grads, optimizer.init(position), position
    unknown = {"unknown": jnp.ones(3), "another": "text", **case.extra}
    found = jax.jit(lambda *trees: optimizer.update(*trees, **unknown))(*given)
    assert_equal(found, jax.jit(functools.partial(step, case, optimizer))(*given))


@check(where="without_params")
def check_params_are_optional(case: Case) -> None:
    optimizer = case.make()
    position, grads = params(), gradients(1)[0]
    state = optimizer.init(position)
    without = optimizer.update(grads, state, **case.extra)
    assert_equal(without, step(case, optimizer, grads, state, position))


@check(instead_of=check_params_are_optional)
def check_params_are_asked_for(case: Case) -> None:
    optimizer = case.make()
    state = optimizer.init(params())
    with pytest.raises(ValueError, match="params"):
        optimizer.update(gradients(1)[0], state, **case.extra)


@check(where="without_value")
def check_value_is_optional(case: Case) -> None:
    optimizer = case.make()
    position = params()
    extra = {name: given for name, given in case.extra.items() if name != "value"}
    updates, state = optimizer.update(
        gradients(1)[0], optimizer.init(position), position, **extra
    )
    chex.assert_tree_all_finite((updates, state))


@check(instead_of=check_value_is_optional)
def check_value_is_asked_for(case: Case) -> None:
    optimizer = case.make()
    position = params()
    with pytest.raises(ValueError, match="value"):
        optimizer.update(gradients(1)[0], optimizer.init(position), position)


@check()
def check_empty_trees(case: Case) -> None:
    optimizer = case.make()
    for empty in ({}, (), {"a": {}, "b": []}):
        state = optimizer.init(empty)
        bound = functools.partial(step, case, optimizer)
        for update in (bound, jax.jit(bound)):
            updates, new = update(empty, state, empty)
            assert updates == empty
            assert jax.tree.structure(new) == jax.tree.structure(state)


@check()
def check_none_leaves(case: Case) -> None:
    """A None in the tree is no leaf: it stays, and changes nothing for the others."""

    def with_none(tree):
        return {"frozen": None, "live": tree}

    optimizer = case.make()
    grads = gradients()
    updates, state = run(case, optimizer, with_none(params()), list(map(with_none, grads)))
    wanted, wanted_state = plain(case)
    assert [u["frozen"] for u in updates] == [None] * len(grads)
    assert_equal([u["live"] for u in updates], wanted)
    assert_equal(jax.tree.leaves(state), jax.tree.leaves(wanted_state))
