"""From one choice of codecs to another: what converts, and what is never read wrongly."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from sentences import REMEDIES, assert_sentence

import optabs
from optabs.storage.codecs import Bfloat16, Int8, UInt8, is_node

OTHER = "bfloat16"
SHAPE = (64, 128)
RATE = 0.05
TARGET = jax.random.normal(jax.random.key(1), SHAPE)
START = {"w": jnp.zeros(SHAPE)}


def narrow(codecs: Any = None, unit: Any = optabs.adam) -> Any:
    return optabs.narrow_state(unit(RATE), codecs)


def distance(params: Any) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(params["w"] - TARGET))))


def trained(optimizer: Any, steps: int, params: Any = START, state: Any = None) -> Any:
    """On a quadratic, by noisy gradients."""
    state = optimizer.init(params) if state is None else state

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        params, state = carry
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), SHAPE)
        grads = {"w": params["w"] - TARGET + 0.1 * noise}
        updates, state = optimizer.update(grads, state, params)
        return ({"w": params["w"] + updates["w"]}, state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0])
    return run((params, state))


def kinds(state: Any) -> set[type]:
    leaves = jax.tree.leaves(state, is_leaf=is_node)
    return {type(leaf) for leaf in leaves if is_node(leaf)}


def stored(path: pathlib.Path, state: Any, like: Any) -> Any:
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        if not path.exists():
            checkpointer.save(path, state)
            checkpointer.wait_until_finished()
        return checkpointer.restore(path, like)


@pytest.mark.slow
def test_a_run_of_other_codecs_goes_on_with_the_default(tmp_path: pathlib.Path) -> None:
    old, new = narrow(OTHER), narrow()
    params, state = trained(old, 15)
    assert kinds(state) == {Bfloat16}
    restored = stored(tmp_path / "state", state, jax.eval_shape(old.init, START))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    wide = optabs.decode_state(restored)
    moved = optabs.encode_state(wide, new.init(START))
    assert kinds(moved) == {Int8, UInt8}
    again = optabs.decode_state(moved)
    for new_leaf, old_leaf in zip(jax.tree.leaves(again), jax.tree.leaves(wide), strict=True):
        # Half of a step of the coarsest grid.
        slack = 0.126 * np.abs(old_leaf)
        assert np.all(np.abs(new_leaf - old_leaf) <= slack)
    before = distance(params)
    wanted, _ = trained(optabs.adam(RATE), 40, params, wide)
    found, _ = trained(new, 40, params, moved)
    assert distance(found) < 0.5 * before
    assert distance(found) < 1.1 * distance(wanted) + 0.01
    way = np.sqrt(np.mean(np.square(wanted["w"] - params["w"])))
    assert np.sqrt(np.mean(np.square(found["w"] - wanted["w"]))) < 0.1 * way


@pytest.mark.slow
def test_an_optimizer_refuses_a_state_of_other_codecs() -> None:
    _, state = trained(narrow(OTHER), 1)
    for update in (narrow().update, jax.jit(narrow().update)):
        with pytest.raises(ValueError, match="but codecs gives it") as error:
            update(START, state, START)
        assert "optabs.encode_state" in str(error.value)
        assert_sentence(str(error.value), REMEDIES)


def former(state: Any) -> Any:
    """A checkpoint of a release whose blocks had scales, restored without a look at names."""

    def scaled(node: Any) -> Any:
        return node._replace(ranges=jnp.ones((64, 2))) if is_node(node) else node

    inner = jax.tree.map(scaled, state.inner, is_leaf=is_node)
    return state._replace(format=state.format + jnp.uint32(1), inner=inner)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [optabs.adam, optabs.adam_abs])
def test_a_former_checkpoint_in_the_places_of_the_default_is_refused(unit: Any) -> None:
    new = narrow(None, unit)
    _, state = trained(new, 3)
    like = jax.eval_shape(new.init, START)
    misread = former(state)
    # As a restore may that casts what it finds to what is wanted.
    cast = jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), misread, like)
    for wrong in (misread, cast):
        for read in (
            optabs.decode_state,
            lambda state: new.update(START, state, START),
            lambda state: optabs.encode_state(optabs.decode_state(state), new.init(START)),
        ):
            with pytest.raises(ValueError, match="state has arrays of other codecs") as error:
                read(wrong)
            text = str(error.value)
            assert "restore a checkpoint into the state of the narrow_state" in text
            assert "optabs.decode_state" in text
            assert_sentence(text, REMEDIES)
    # Inside of jit no number can be read: the state is NaN, and its steps.
    updates, after = jax.jit(new.update)(START, cast, START)
    assert np.all(np.isnan(updates["w"]))
    wide = jax.jit(optabs.decode_state)(cast)
    assert np.all(np.isnan(wide[0].numerator.mu["w"]))
    assert np.all(np.isnan(wide[0].denominator.nu["w"]))
    # It does not become right by being stepped.
    updates, _ = jax.jit(new.update)(START, after, START)
    assert np.all(np.isnan(updates["w"]))


@pytest.mark.slow
def test_a_restore_into_other_places_never_goes_on(tmp_path: pathlib.Path) -> None:
    """The parts of a node have names of their own, or the format tells."""
    old, new = narrow(OTHER), narrow()
    _, state = trained(old, 3)
    path = tmp_path / "state"
    stored(path, state, jax.eval_shape(old.init, START))
    with pytest.raises((ValueError, KeyError)):
        optabs.decode_state(stored(path, state, jax.eval_shape(new.init, START)))


@pytest.mark.parametrize(
    "codecs",
    [{}, OTHER, {"mu": "int8", "nu": "float32"}],
    ids=str,
)
def test_encoding_again_what_was_decoded_changes_nothing(codecs: Any) -> None:
    optimizer = narrow(codecs)
    _, state = trained(optimizer, 5)
    wide = optabs.decode_state(state)
    again = optabs.decode_state(optabs.encode_state(wide, optimizer.init(START)))
    for found, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
