"""Narrow states: what is encoded, in what, and that training goes on as before."""

import logging
import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import optabs
from optabs.storage.codecs import Bfloat16, Int8, UInt8, is_node

PARAMS = {"w": jnp.full((64, 128), 0.5), "b": jnp.zeros(128)}
OPTIMIZERS = {
    "adam_abs": optabs.adam_abs(1e-3),
    "adam": optabs.adam(1e-3),
    "adagrad_abs": optabs.adagrad_abs(1e-2),
    "nag": optabs.nag(1e-2),
    "optax_adamw": optax.adamw(1e-3),
    "optax_lion": optax.lion(1e-3),
    "optax_sgd": optax.sgd(1e-2, momentum=0.9),
    "optax_adagrad": optax.adagrad(1e-2),
    "optax_adafactor": optax.adafactor(1e-3, momentum=0.9),
    "optax_bfloat16_mu": optax.adam(1e-3, mu_dtype=jnp.bfloat16),
}


def gradient(seed: int = 0, params: Any = PARAMS) -> Any:
    keys = optax.tree.split_key_like(jax.random.key(seed), params)
    return jax.tree.map(lambda key, p: jax.random.normal(key, p.shape), keys, params)


def kinds(state: Any) -> dict[str, str]:
    """The encoded leaves of a state, by their path: the name of their node."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_node)
    return {
        jax.tree_util.keystr(path): type(leaf).__name__
        for path, leaf in leaves
        if is_node(leaf)
    }


def fields(state: Any) -> set[tuple[str, str]]:
    return {
        (re.findall(r"\.(\w+)", path)[-1], name) for path, name in kinds(state).items()
    }  # fmt: skip


def stepped(optimizer: Any, steps: int = 3, params: Any = PARAMS, state: Any = None) -> Any:
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradient(step, params), state, params)
    return updates, state


WANTED = {
    "adam_abs": {("mu", "Int8"), ("nu", "UInt8")},
    "adam": {("mu", "Int8"), ("nu", "UInt8")},
    "adagrad_abs": {("nu", "UInt8")},
    "nag": {("mu", "Int8")},
    "optax_adamw": {("mu", "Int8"), ("nu", "UInt8")},
    "optax_lion": {("mu", "Int8")},
    "optax_sgd": {("trace", "Int8")},
    "optax_adagrad": {("sum_of_squares", "UInt8")},
    "optax_adafactor": {("v", "UInt8"), ("ema", "Int8")},
    "optax_bfloat16_mu": {("mu", "Int8"), ("nu", "UInt8")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_large_leaves_are_encoded_and_steps_stay_close(name: str) -> None:
    inner = OPTIMIZERS[name]
    narrow = optabs.narrow_state(inner, {"ema": "int8"} if "adafactor" in name else None)
    updates, state = stepped(narrow)
    assert fields(state) == WANTED[name]
    assert not any("'b'" in path for path in kinds(state))
    assert jax.tree.structure(optabs.decode_state(state)) == jax.tree.structure(
        optabs.full_precision(inner).init(PARAMS)
    )
    wanted, _ = stepped(optabs.full_precision(inner))
    np.testing.assert_allclose(updates["b"], wanted["b"], rtol=1e-5)
    apart = np.abs(updates["w"] - wanted["w"])
    if name == "optax_lion":  # a sign is right or wrong
        assert np.mean(apart > 0) < 0.03
    else:
        # A row's first codes have two steps an octave.
        assert np.sqrt(np.mean(apart**2) / np.mean(np.square(wanted["w"]))) < 0.12


@pytest.mark.slow
def test_copies_of_weights_and_sums_of_gradients_are_left_alone() -> None:
    narrow = optabs.narrow_state
    free = narrow(optax.contrib.schedule_free_adamw(1e-3, b1=0.9))
    assert fields(free.init(PARAMS)) == {("nu", "UInt8")}
    sums = narrow(optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation())
    assert fields(sums.init(PARAMS)) == {("mu", "Int8"), ("nu", "UInt8")}
    named = narrow(
        optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
        {"acc_grads": "bfloat16"},
    )
    assert ("acc_grads", "Bfloat16") in fields(named.init(PARAMS))


def test_updates_of_two_trees_from_one() -> None:
    """optax.lookahead's parameters are pairs, and its gradients are not."""
    grads = jax.tree.map(lambda leaf: (0.5 * leaf).astype(jnp.bfloat16), PARAMS)
    params = optax.LookaheadParams.init_synced(PARAMS)
    ahead = optax.lookahead(optax.adam(1e-3), 3, 0.5)
    wanted, _ = ahead.update(optax.tree.cast(grads, jnp.float32), ahead.init(params), params)
    for wrapper in (optabs.narrow_state, optabs.full_precision):
        optimizer = wrapper(ahead)
        updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, wanted)


def test_a_parameter_may_have_a_moments_name() -> None:
    class Model(NamedTuple):
        mu: jax.Array
        nu: jax.Array

    params = Model(jnp.ones((64, 128)), jnp.ones((64, 128)))
    copies = optabs.narrow_state(optax.contrib.schedule_free_sgd(1e-3))
    with pytest.warns(UserWarning, match="narrow_state knows no moment of this state"):
        assert kinds(copies.init(params)) == {}
    adam = optabs.narrow_state(optabs.adam(1e-3)).init(params)
    assert fields(adam) == {
        (name, node) for name in ("mu", "nu") for node in ("Int8", "UInt8")
    }
    assert kinds(optax.tree.get(adam, "numerator")) != {}


def test_codecs_by_field_by_name_and_by_function() -> None:
    params = {"embedding": jnp.ones((64, 128)), "head": {"w": jnp.ones((64, 128))}}

    def state_of(*arguments: Any, **options: Any) -> Any:
        return optabs.narrow_state(optabs.adam(1e-3), *arguments, **options).init(params)

    kept = kinds(state_of(keep=["embedding"]))
    assert len(kept) == 2
    assert not any("embedding" in path for path in kept)
    assert fields(state_of({"mu": "float32"})) == {("nu", "UInt8")}
    assert fields(state_of("bfloat16")) == {("mu", "Bfloat16"), ("nu", "Bfloat16")}
    assert fields(state_of("int8")) == fields(state_of("uint8")) == fields(state_of())
    assert fields(state_of("float32")) == set()
    assert fields(state_of({"mu": "bfloat16", "nu": "uint8"})) == {
        ("mu", "Bfloat16"), ("nu", "UInt8"),
    }  # fmt: skip

    def chosen(path: str, shape: jax.ShapeDtypeStruct) -> str | None:
        assert shape.shape == (64, 128)
        return "bfloat16" if "head" in path and ".nu[" in path else None

    assert list(kinds(state_of(chosen)).values()) == ["Bfloat16"]
    assert kinds(state_of(min_size=64 * 128 + 1)) == {}
    assert len(kinds(state_of(min_size=64 * 128))) == 4


@pytest.mark.slow
def test_bytes_of_a_parameter() -> None:
    params = {"w": jnp.zeros((512, 512)), "v": jnp.zeros((1024, 256))}
    state = optabs.narrow_state(optabs.adam_abs(1e-3)).init(params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert size / (512 * 512 + 1024 * 256) == pytest.approx(2.011, rel=1e-3)


@pytest.mark.slow
def test_a_slow_average_moves() -> None:
    """Towards a tenth of its value; where it is rounded to nearest, nothing moves at all."""
    grads = {"w": jnp.full((64, 128), 1.0)}
    for codec in ("bfloat16", "uint8"):
        narrow = optabs.narrow_state(optabs.mean_abs(0.999), {"nu": codec})

        def tenth(state: Any, _: Any, narrow: Any = narrow) -> Any:
            small = jax.tree.map(lambda g: 0.1 * g, grads)
            return narrow.update(small, state)[1], None

        # A row whose entries all have one value hides the codes: half starts at 1.
        mixed = {"w": grads["w"].at[:, ::2].set(0.5)}
        state = optabs.narrow_state(optabs.mean_abs(0.0), {"nu": codec}).init(grads)
        _, state = optabs.narrow_state(optabs.mean_abs(0.0), {"nu": codec}).update(
            mixed, state
        )
        state, _ = jax.lax.scan(tenth, state, length=2000)
        mean = np.asarray(optax.tree.get(optabs.decode_state(state), "nu")["w"])
        wanted = 0.1 + np.array([0.4, 0.9]) * 0.999**2000
        found = [mean[:, ::2].mean(), mean[:, 1::2].mean()]
        np.testing.assert_allclose(found, wanted, rtol=0.02)


@pytest.mark.slow
def test_runs_repeat_and_seeds_differ() -> None:
    def run(seed: Any) -> Any:
        return stepped(optabs.narrow_state(optabs.adam(1e-3), seed=seed))[1]

    one, again, other = run(1), run(jnp.uint32(1)), run(2)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert (
        np.mean(one.inner[0].numerator.mu["w"].codes != other.inner[0].numerator.mu["w"].codes)
        > 0.1
    )


@pytest.mark.slow
def test_under_scan_with_donation_and_vmap() -> None:
    narrow = optabs.narrow_state(optabs.adam_abs(1e-3))

    def advance(state: Any, grads: Any) -> Any:
        updates, state = narrow.update(grads, state)
        return state, updates

    grads = [gradient(step) for step in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    wanted, _ = stepped(narrow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Some donated buffers were not usable"
        scanned = jax.jit(
            lambda state: jax.lax.scan(advance, state, stacked), donate_argnums=0
        )
        _, updates = scanned(narrow.init(PARAMS))
    np.testing.assert_allclose(updates["w"][-1], wanted["w"], atol=2e-5)
    twice = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = jax.vmap(narrow.init)(twice)
    assert fields(states) == WANTED["adam_abs"]
    two = jax.tree.map(lambda g: jnp.stack([g, g]), grads[0])
    together, _ = jax.jit(jax.vmap(narrow.update))(two, states, twice)
    alone, _ = narrow.update(grads[0], narrow.init(PARAMS), PARAMS)
    np.testing.assert_allclose(together["w"][1], alone["w"], rtol=1e-5)


def test_with_a_flax_model_and_injected_rates() -> None:
    model = nnx.Linear(64, 128, rngs=nnx.Rngs(0))
    factory = optax.inject_hyperparams(optabs.adamw_abs)(learning_rate=1e-2)
    optimizer = nnx.Optimizer(model, optabs.narrow_state(factory), wrt=nnx.Param)
    inputs, targets = jnp.ones((8, 64)), jnp.ones((8, 128))

    @nnx.jit
    def train(model: nnx.Linear, optimizer: nnx.Optimizer) -> jax.Array:
        loss, grads = nnx.value_and_grad(
            lambda model: jnp.mean((model(inputs) - targets) ** 2)
        )(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(train(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.slow
def test_a_run_goes_on_with_other_codecs_and_without() -> None:
    narrow = optabs.narrow_state(optabs.adam_abs(1e-3))
    halves = optabs.narrow_state(optabs.adam_abs(1e-3), {"mu": "bfloat16", "nu": "bfloat16"})
    _, state = stepped(narrow, 5)
    wide = optabs.decode_state(state)
    other = optabs.encode_state(wide, halves.init(PARAMS))
    assert {name for _, name in fields(other)} == {"Bfloat16"}
    exact, _ = optabs.adam_abs(1e-3).update(gradient(9), wide, PARAMS)
    for optimizer, given, error in ((halves, other, 0.01), (narrow, state, 1e-6)):
        updates, _ = optimizer.update(gradient(9), given, PARAMS)
        np.testing.assert_allclose(updates["w"], exact["w"], atol=error * 1e-3)
    # In a chain, and back again: decoding forgets nothing that encoding knew.
    chain = optax.chain(optax.clip(1.0), narrow)
    _, chained = stepped(chain, 2)
    wide = optabs.decode_state(chained)
    again = optabs.decode_state(optabs.encode_state(wide, chained))
    jax.tree.map(np.testing.assert_array_equal, again, wide)


@pytest.mark.slow
def test_helpers_look_inside() -> None:
    narrow = optabs.narrow_state(optabs.nag(1e-2), min_size=1)
    params = {"w": jnp.ones((64, 128))}
    updates, state = narrow.update(gradient(0, params), narrow.init(params), params)
    at = optax.apply_updates(params, updates)
    exact, exact_state = optabs.nag(1e-2).update(
        gradient(0, params), optabs.nag(1e-2).init(params), params
    )
    np.testing.assert_allclose(
        optabs.nag_eval_params(state, at)["w"],
        optabs.nag_eval_params(exact_state, optax.apply_updates(params, exact))["w"],
        atol=3e-3,
    )
    mixture = optabs.narrow_state(optabs.dao_e(1e-3))
    weights = optabs.mixing_weights(mixture.init(params))
    assert sum(weights.values()) == pytest.approx(1)


def test_dtypes_of_the_codes() -> None:
    state = optabs.narrow_state(optabs.adam(1e-3), {"nu": "bfloat16"}).init(PARAMS)
    adam = state.inner[0]
    assert isinstance(adam.numerator.mu["w"], Int8)
    assert isinstance(adam.denominator.nu["w"], Bfloat16)
    assert adam.numerator.mu["w"].codes.dtype == jnp.int8
    assert UInt8.__doc__


@pytest.mark.slow
def test_a_derivative_sees_no_moments_but_the_last_gradient() -> None:
    def last_update(scales: jax.Array) -> jax.Array:
        optimizer = optabs.narrow_state(optabs.adam_abs(1e-3))
        state = optimizer.init(PARAMS)
        updates = PARAMS
        for step, scale in enumerate(scales):
            grads = jax.tree.map(lambda leaf, by=scale: by * leaf, gradient(step))
            updates, state = optimizer.update(grads, state, PARAMS)
        return updates["w"].sum()

    before, last = jax.grad(last_update)(jnp.ones(2))
    assert before == 0
    assert last != 0


class Compilations(logging.Handler):
    """The names of the programs that are compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.match(r"Finished XLA compilation of (\S+)", record.getMessage()):
            self.names.append(found[1])


def test_init_outside_of_jit_compiles_one_program_a_shape_and_codec() -> None:
    optimizer = optabs.narrow_state(optabs.adam(1e-3))
    params = {f"w{i}": jnp.ones((32, 128 + 32 * (i % 2))) for i in range(4)}
    wide = optabs.full_precision(optabs.adam(1e-3)).init(params)  # its own programs
    seen, logger = Compilations(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(seen)
    try:
        with jax.log_compiles():
            optimizer.init(params)
    finally:
        logger.removeHandler(seen)
    assert len(jax.tree.leaves(wide)) == 2 * 4 + 2
    of_codecs = [name for name in seen.names if "_encode_first" in name]
    assert len(of_codecs) == 2 * 2  # shapes and codecs
    assert len(seen.names) <= len(of_codecs) + 8, seen.names
