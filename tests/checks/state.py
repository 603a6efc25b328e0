"""The state as a value: made from shapes, donated, looked into, saved and restored."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint
from cases import Case
from trees import (
    assert_close,
    assert_equal,
    avals,
    filled,
    gradients,
    params,
    plain,
    step,
)

import optabs
from checks.registry import check
from optabs.storage.codecs import is_node


@check(variants=("float32", "bfloat16"))
def check_init_takes_abstract_params(case: Case, dtype: str) -> None:
    optimizer = case.make()
    position = params(dtype)
    abstract = jax.eval_shape(lambda: position)
    assert avals(optimizer.init(abstract)) == avals(optimizer.init(position))


@check()
def check_init_reads_no_values(case: Case) -> None:
    optimizer = case.make()
    position = params()
    wanted = optimizer.init(position)
    assert_equal(optimizer.init(filled(position, jnp.nan)), wanted)
    # Abstract parameters inside of a trace as well: a value would be a concretisation.
    assert avals(jax.eval_shape(optimizer.init, position)) == avals(wanted)


def _addresses(tree: Any) -> list[int]:
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


@check()
def check_buffers_are_apart(case: Case) -> None:
    optimizer = case.make()
    position = params()
    for init in (optimizer.init, jax.jit(optimizer.init)):
        state = init(position)
        addresses = _addresses((position, state))
        assert len(set(addresses)) == len(addresses)


@check()
def check_donation(case: Case) -> None:
    optimizer = case.make()

    def advance(position, state, grads):
        updates, state = step(case, optimizer, grads, state, position)
        return optax.apply_updates(position, updates), state

    kept = jax.tree.map(jnp.copy, params())
    position = jax.tree.map(jnp.copy, kept)
    compiled = jax.jit(advance, donate_argnums=(0, 1))
    state = optimizer.init(position)
    plain = (kept, optimizer.init(kept))
    for grads in gradients(2):
        given = jax.tree.leaves((position, state))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "Some donated buffers were not usable"
            position, state = compiled(position, state, grads)
        assert all(leaf.is_deleted() for leaf in given)
        plain = advance(*plain, grads)
    assert_close((position, state), plain, rtol=1e-5)


@check()
def check_moments_are_found(case: Case) -> None:
    _, state = plain(case)
    state = optabs.decode_state(state)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params())]
    for name in {"mu", "nu", "nu_max", *case.moments}:
        found = [value for _, value in optax.tree.get_all_with_path(state, name)]
        declared = case.moments.get(name, 0)
        assert len(found) == declared, f"the row's moments: {name} {declared}"
        for moment in found:
            assert [leaf.shape for leaf in jax.tree.leaves(moment)] == shapes
        if len(found) == 1:
            assert_equal(optax.tree.get(state, name), found[0])
    for count in (value for _, value in optax.tree.get_all_with_path(state, "count")):
        assert count.dtype == jnp.int32
        assert count == len(gradients())


@check()
def check_params_in_state_are_mapped(case: Case) -> None:
    """optax knows which leaves of the state are parameters."""
    optimizer = case.make()
    state = optimizer.init(params())
    for map_params in (optax.tree.map_params, optax.tree_utils.tree_map_params):
        assert_equal(map_params(optimizer, lambda leaf: leaf, state), state)
    marked = optax.tree.map_params(
        optimizer, lambda _: "parameter", state, transform_non_params=lambda _: "other"
    )
    found = [_mark(leaf) for leaf in jax.tree.leaves(marked, is_leaf=is_node)]
    each = len(jax.tree.leaves(params()))
    assert found.count("parameter") == each * sum(case.moments.values()), "the row's moments"


def _mark(leaf: Any) -> Any:
    """What a leaf is, or all parts of an encoded one are."""
    (mark,) = set(leaf) if is_node(leaf) else {leaf}
    return mark


@check()
def check_checkpoint_continues_bit_for_bit(case: Case) -> None:
    optimizer = case.make()
    position, grads = params(), gradients(4)

    def advance(saved, grads):
        updates, state = step(case, optimizer, grads, saved["state"], saved["params"])
        return {"params": optax.apply_updates(saved["params"], updates), "state": state}

    saved = {"params": position, "state": optimizer.init(position)}
    for gradient in grads[:2]:
        saved = advance(saved, gradient)
    fresh = {"params": position, "state": optimizer.init(position)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, saved)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(path, jax.eval_shape(lambda: fresh))
    assert avals(restored) == avals(saved)
    # Of arrays that are bound to a device every operation would be compiled once more.
    restored = jax.tree.map(jnp.asarray, jax.device_get(restored))
    for gradient in grads[2:]:
        saved, restored = advance(saved, gradient), advance(restored, gradient)
    assert_equal(restored, saved)
