"""What stands around a parameter: partitions, masks, boxes, and boxes around nothing."""

import dataclasses
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sentences import REMEDIES, assert_sentence

import optabs
from optabs._tree import is_box
from optabs.storage.codecs import is_node

WEIGHT = jnp.ones((64, 128))
ADAM = optabs.adam_abs(1e-3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Own:
    """A box of a user's own."""

    value: Any


EMPTY = {
    "None in a Variable": lambda: nnx.Param(None),
    "a mask in a Variable": lambda: nnx.Param(optax.MaskedNode()),
    "None in linen's box": lambda: nn.Partitioned(None, ("x",)),
    "a mask in linen's box": lambda: nn.Partitioned(optax.MaskedNode(), ("x",)),
    "None in a dataclass": lambda: Own(None),
    "a mask in a dataclass": lambda: Own(optax.MaskedNode()),
    "None": lambda: None,
    "a mask": optax.MaskedNode,
}
FULL = {
    "a Variable": lambda: nnx.Param(WEIGHT),
    "linen's box": lambda: nn.Partitioned(WEIGHT, (None, None)),
    "a dataclass": lambda: Own(WEIGHT),
}


def nodes(state: Any) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=is_node)
    return [leaf for leaf in leaves if is_node(leaf)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EMPTY)
def test_around_nothing_there_is_no_box(name: str) -> None:
    assert not is_box(EMPTY[name]())
    params = {"a": WEIGHT, "b": EMPTY[name]()}
    optimizer = optabs.narrow_state(ADAM)
    state = optimizer.init(params)
    assert len(nodes(state)) == 2
    updates, state = jax.jit(optimizer.update)(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert len(nodes(state)) == 2
    wide = optabs.decode_state(state)
    assert jax.tree.structure(wide) == jax.tree.structure(ADAM.init(params))
    again = optabs.encode_state(wide, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_the_parts_of_a_node_are_in_the_box_of_their_array(name: str) -> None:
    box = FULL[name]()
    assert is_box(box)
    params = {"a": box, "b": WEIGHT}
    optimizer = optabs.narrow_state(ADAM)
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    for field in (state.inner[0].numerator.mu, state.inner[0].denominator.nu):
        for part in field["a"]:
            assert type(part) is type(box)
        for part, bare in zip(field["a"], field["b"], strict=True):
            (array,) = jax.tree.leaves(part)
            assert array.shape == bare.shape
            assert array.dtype == bare.dtype
    (boxed,) = jax.tree.leaves(updates["a"])
    np.testing.assert_allclose(boxed, updates["b"], rtol=1e-5)


class Model(nnx.Module):
    """A kernel that trains, and a bias that is None."""

    def __init__(self) -> None:
        self.layer = nnx.Linear(64, 128, rngs=nnx.Rngs(0))
        self.nothing = nnx.Param(None)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.layer(inputs)


def labels(params: Any) -> Any:
    def label(path: Any, _: Any) -> str:
        return "train" if "kernel" in jax.tree_util.keystr(path) else "frozen"

    return jax.tree_util.tree_map_with_path(label, params)


def partition(unit: Any) -> Any:
    return optax.partition({"train": unit, "frozen": optax.set_to_zero()}, labels)


WRAPPED = {
    "narrow partition": lambda: optabs.narrow_state(partition(ADAM)),
    "partition of narrow": lambda: partition(optabs.narrow_state(ADAM)),
    "narrow mask": lambda: optabs.narrow_state(optax.masked(ADAM, is_kernel)),
    "mask of narrow": lambda: optax.masked(optabs.narrow_state(ADAM), is_kernel),
}


def is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda label: label == "train", labels(params))


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("make", [Model, lambda: nnx.Linear(64, 128, rngs=nnx.Rngs(0))])
def test_partitions_inside_and_outside_in_an_nnx_optimizer(name: str, make: Any) -> None:
    model = make()
    optimizer = nnx.Optimizer(model, WRAPPED[name](), wrt=nnx.Param)
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    assert len(nodes(nnx.as_pure(optimizer.opt_state))) == 2

    @nnx.jit
    def train(model: Any, optimizer: nnx.Optimizer) -> jax.Array:
        loss, grads = nnx.value_and_grad(
            lambda model: jnp.mean(model(jnp.ones((8, 64))) ** 2)
        )(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(train(model, optimizer)) for _ in range(5)]
    assert losses[-1] < losses[0]
    after = nnx.state(model, nnx.Param)
    flat, flat_before = jax.tree.leaves(after), jax.tree.leaves(before)
    moved = [not np.array_equal(a, b) for a, b in zip(flat, flat_before, strict=True)]
    assert sum(moved) >= 1
    if "partition" in name:
        assert sum(moved) == 1  # the bias is frozen


@pytest.mark.parametrize("name", WRAPPED)
def test_keep_names_masked_parameters_too(name: str) -> None:
    """Each part of a partition sees the other's parameters as masked nodes."""
    params = {"kernel": WEIGHT, "embedding": WEIGHT}
    kept = optabs.narrow_state(ADAM, keep=["embedding"])
    makes: dict[str, Any] = {
        "narrow partition": optabs.narrow_state(partition(ADAM), keep=["embedding"]),
        "partition of narrow": partition(kept),
        "narrow mask": optabs.narrow_state(optax.masked(ADAM, is_kernel), keep=["embedding"]),
        "mask of narrow": optax.masked(kept, is_kernel),
    }
    state = makes[name].init(params)
    assert len(nodes(state)) == 2
    with pytest.raises(ValueError, match="keep has 'embeding', the name of no parameter"):
        partition(optabs.narrow_state(ADAM, keep=["embeding"])).init(params)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [([], 0), (["tok"], 1), (["embedding"], 1), (["tok", "head"], 2), (["value"], 1)],
    ids=str,
)
def test_keep_takes_names_of_parameters_and_of_parts(keep: list[str], kept: int) -> None:
    params = {"tok": {"embedding": WEIGHT}, "head": {"w": WEIGHT}, "own": Own(WEIGHT)}
    state = optabs.narrow_state(ADAM, keep=keep).init(params)
    assert len(nodes(state)) == 2 * (3 - kept)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": ["tok.embedding"]}, "keep has 'tok.embedding', the name of no parameter;"),
        ({"keep": ["tok/embedding"]}, "keep has 'tok/embedding', the name of no parameter;"),
        ({"keep": ["embeding"]}, "keep has 'embeding', the name of no parameter;"),
        ({"codecs": {"v_t": "bfloat16"}}, "codecs has 'v_t', .*; choose from 'mu', 'nu'"),
    ],
    ids=str,
)
def test_names_that_match_nothing_are_refused(options: Any, sentence: str) -> None:
    names = {f"a long name of a layer, number {number}": WEIGHT for number in range(40)}
    for params in ({"tok": {"embedding": WEIGHT}}, {"tok": {"embedding": WEIGHT}, **names}):
        with pytest.raises(ValueError, match=sentence) as error:
            optabs.narrow_state(ADAM, **options).init(params)
        assert_sentence(str(error.value), REMEDIES)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1.0, np.float32(1.0), 1])
def test_leaves_that_are_numbers_of_python(number: Any) -> None:
    params = {"w": WEIGHT, "temperature": number}
    grads = {"w": 0.5 * WEIGHT, "temperature": 0.5}
    for min_size in (4096, 0):
        optimizer = optabs.narrow_state(ADAM, min_size=min_size)
        state = optimizer.init(params)
        assert len(nodes(state)) == 2
        updates, state = optimizer.update(grads, state, params)
        wanted, _ = ADAM.update(grads, ADAM.init(params), params)
        np.testing.assert_allclose(updates["temperature"], wanted["temperature"], rtol=1e-6)
        optabs.encode_state(optabs.decode_state(state), optimizer.init(params))
    halves = optabs.narrow_state(ADAM, "bfloat16", min_size=0)
    updates, _ = jax.jit(halves.update)(grads, halves.init(params), params)
    assert np.isfinite(updates["temperature"])


def test_a_warning_is_one_short_sentence() -> None:
    """However many leaves it is about, and however long their paths are."""
    deep: Any = jnp.ones((64, 128), jnp.complex64)
    for number in range(12):
        deep = {f"a long name of a part of a model, number {number}": deep}
    params = {"deep": deep, "flat": jnp.ones((64, 128), jnp.complex64), "w": WEIGHT}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optabs.narrow_state(ADAM).init(params)
    (warning,) = caught
    text = str(warning.message)
    assert_sentence(text, REMEDIES)
    assert "narrow_state leaves" in text
    assert "(complex64)" in text
