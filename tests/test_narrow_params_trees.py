"""narrow_params around any optimizer, inside of any wrapper, for any tree."""

import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from broken import CONTROLS
from cases import Case
from checks import CHECKS
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from narrow_params_problem import BF16, GIVEN, compiled_step, random_state, random_values
from sentences import REMEDIES, assert_sentence
from trees import declared

import optabs

OTHERS = {
    "int": jnp.arange(3),
    "complex": jnp.ones(3, jnp.complex64),
    "half": jnp.ones(3, jnp.float16),
}


def test_other_dtypes_are_left_alone_and_said_so_once() -> None:
    params = {"w": jnp.ones(3, BF16), **OTHERS}
    optimizer = optabs.narrow_params(optabs.sgd(0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = optimizer.init(params)
    (warning,) = caught
    text = str(warning.message)
    assert "narrow_params leaves ['complex'] (complex64) and 2 more as it is" in text
    assert warning.filename == __file__
    assert_sentence(text, REMEDIES)
    grads = {name: jnp.ones(3, leaf.dtype) for name, leaf in params.items()}
    updates, state = jax.jit(optimizer.update)(grads, state, params)
    alone, _ = optabs.sgd(0.5).update(grads, optabs.sgd(0.5).init(params), params)
    for name in OTHERS:
        assert updates[name].dtype == grads[name].dtype
        np.testing.assert_array_equal(updates[name], alone[name])
    assert updates["w"].dtype == jnp.float32
    exact = optabs.exact_params(params, state)
    assert {name: leaf.dtype for name, leaf in exact.items()} == {
        **{name: leaf.dtype for name, leaf in OTHERS.items()},
        "w": jnp.float32,
    }


def test_float64_is_left_alone() -> None:
    with jax.enable_x64(True):
        params = {"wide": jnp.ones(3, jnp.float64), "w": jnp.ones(3, jnp.float32)}
        optimizer = optabs.narrow_params(optabs.adam(1e-3))
        with pytest.warns(UserWarning, match=r"leaves \['wide'\] \(float64\) as it is"):
            state = optimizer.init(params)
        params["w"] = params["w"].astype(BF16)
        updates, state = optimizer.update(params, state, params)
        assert [updates[name].dtype for name in ("wide", "w")] == [jnp.float64, jnp.float32]
        assert optabs.exact_params(params, state)["wide"].dtype == jnp.float64


def is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim == 2, params)


def kinds(params: Any) -> Any:
    return jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "vector", params)


ADAM = optabs.adam(2.0**-12)
WRAPPED = {
    "chain": lambda own: optax.chain(optax.clip_by_global_norm(1.0), own),
    "masked": lambda own: optax.masked(own, is_matrix),
    "MultiSteps": lambda own: optax.MultiSteps(own, 2).gradient_transformation(),
    "partition": lambda own: optax.partition({"matrix": own, "vector": ADAM}, kinds),
    "two parts": lambda own: optax.partition({"matrix": own, "vector": own}, kinds),
    "apply_if_finite": lambda own: optax.apply_if_finite(own, 3),
    "injected": lambda own: optax.inject_hyperparams(
        lambda learning_rate: optabs.narrow_params(optabs.adam(learning_rate)),
        hyperparam_dtype=jnp.float32,
    )(learning_rate=2.0**-12),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_inside_of_wrappers(name: str) -> None:
    optimizer = WRAPPED[name](optabs.narrow_params(ADAM))
    params = {"w": jnp.ones((4, 2), BF16), "b": jnp.ones(2, BF16)}
    grads = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    state = optimizer.init(params)
    for _ in range(8):
        params, state = compiled_step(optimizer)(grads, state, params)
    exact = optabs.exact_params(params, state)
    steps = 4 if name == "MultiSteps" else 8
    assert exact["w"].dtype == jnp.float32
    np.testing.assert_allclose(exact["w"], 1 - steps * 2.0**-12, atol=steps * 2.0**-16)
    kept = name not in ("masked", "partition")
    assert exact["b"].dtype == (jnp.float32 if kept else BF16)


def test_around_narrow_state_and_not_inside_of_it() -> None:
    params = {"w": jnp.ones((64, 64), BF16)}
    grads = {"w": jnp.ones((64, 64), BF16)}
    inside = optabs.narrow_params(optabs.narrow_state(ADAM))
    state = inside.init(params)
    for _ in range(4):
        params, state = compiled_step(inside)(grads, state, params)
    exact = optabs.exact_params(params, state)
    np.testing.assert_allclose(exact["w"], 1 - 4 * 2.0**-12, atol=2.0**-14)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, grads, state)))
    assert size / params["w"].size < 7.2
    with pytest.raises(ValueError, match="has to be inside of") as error:
        optabs.narrow_state(optabs.narrow_params(ADAM)).init(params)
    assert_sentence(str(error.value), REMEDIES)
    outside = optabs.full_precision(optabs.narrow_params(ADAM))
    with pytest.raises(ValueError, match="or give it an optimizer of its own") as error:
        outside.update(grads, outside.init(params), params)
    assert_sentence(str(error.value), REMEDIES)
    # Its bits are found there, of parameters in float32 and bfloat16 alike.
    assert optabs.exact_params(params, outside.init(params))["w"].dtype == jnp.float32


def test_trees_with_nothing_in_places() -> None:
    params = {"w": jnp.ones(3, BF16), "none": None, "masked": optax.MaskedNode(), "empty": {}}
    grads = {**params, "w": jnp.ones(3, BF16)}
    optimizer = optabs.narrow_params(ADAM)
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)(grads, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    exact = optabs.exact_params(params, state)
    assert jax.tree.structure(exact) == jax.tree.structure(params)


BOXES = {
    "nnx": lambda array: nnx.Param(array),
    "linen": lambda array: nn.Partitioned(array, (None,)),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.filterwarnings("ignore:narrow_params leaves")
def test_boxes_of_flax(name: str) -> None:
    box = BOXES[name]
    params = {
        "w": box(jnp.ones(3, BF16)),
        "n": box(jnp.arange(3)),
        "v": box(jnp.ones(3, BF16)),
    }
    grads = {"w": box(jnp.ones(3, BF16)), "n": box(jnp.ones(3)), "v": box(jnp.ones(3, BF16))}
    optimizer = optabs.narrow_params(ADAM)
    state = optimizer.init(params)
    assert type(state.bits["w"]) is type(params["w"])
    for _ in range(4):
        params, state = compiled_step(optimizer)(grads, state, params)
        params["n"] = box(jnp.arange(3))
    exact = optabs.exact_params(params, state)
    assert type(exact["w"]) is type(params["w"])
    (array,) = jax.tree.leaves(exact["w"])
    np.testing.assert_allclose(array, 1 - 4 * 2.0**-12, atol=2.0**-14)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_init_from_float32_on_a_mesh(kind: AxisType) -> None:
    """What is kept lies where the parameters lie, and is what one device keeps."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    values = random_values(64, 9).reshape(8, 8)
    sharding = NamedSharding(mesh, P("x", "y"))
    with jax.set_mesh(mesh):
        params = jax.device_put(values, sharding)
        state = GIVEN.init(params)
        assert state.bits.sharding.is_equivalent_to(sharding, 2)
        exact = optabs.exact_params(params.astype(BF16), state)
        assert exact.sharding.is_equivalent_to(sharding, 2)
        described = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)
        assert GIVEN.init(described).bits.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(state.bits, GIVEN.init(jnp.asarray(values)).bits)


def test_a_derivative_goes_through() -> None:
    """That of the transformation, by gradients and parameters; and of exact_params."""
    values, params, state = random_state(5, 10)
    scale = optabs.narrow_params(optax.scale(3.0))
    state = scale.init(jnp.asarray(values))

    def total(grads: Any) -> Any:
        return jnp.sum(scale.update(grads, state, params)[0])

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(values)), 3.0)
    slopes = jax.grad(lambda p: jnp.sum(2 * optabs.exact_params(p, state)))(params)
    np.testing.assert_array_equal(slopes, 2.0)


SENTENCES: dict[str, Any] = {
    "params is None": lambda o, s, g: o.update(g, s),
    "came as float32": lambda o, s, g: o.update(g, s, {"w": jnp.ones(3)}),
    "came as float16": lambda o, s, g: o.update(g, s, {"w": jnp.ones(3, jnp.float16)}),
    "another tree than params": lambda o, s, g: o.update({"v": g["w"]}, s, g),
    "another tree than the state's bits": lambda o, s, g: o.update({"v": 1.0}, s, {"v": 1.0}),
    r"have shape \(2,\)": lambda o, s, g: o.update(
        {"w": jnp.ones(2)}, s, {"w": jnp.ones(2, BF16)}
    ),
    "the state keeps no bits of it": lambda o, s, g: o.update(
        g, s._replace(bits={"w": optax.MaskedNode()}), g
    ),
    "state is EmptyState": lambda o, s, g: o.update(g, optax.EmptyState(), g),
    "state holds no NarrowParamsState": lambda o, s, g: optabs.exact_params(g, s.inner),
    r"params\['w'\] came as float32": lambda o, s, g: optabs.exact_params(
        {"w": jnp.ones(3)}, s
    ),
    "transformation is the function adam": lambda o, s, g: optabs.narrow_params(optabs.adam),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_bad_input_gets_one_sentence(sentence: str) -> None:
    optimizer = optabs.narrow_params(optabs.sgd(0.1))
    params = {"w": jnp.ones(3, BF16)}
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=sentence) as error:
        SENTENCES[sentence](optimizer, state, params)
    text = str(error.value)
    assert_sentence(text, "cast|give|pass")


def test_the_new_checks_accept_what_their_controls_lack() -> None:
    """The control's own rule, with the bits, passes both."""
    control = CONTROLS["check_short_steps_add_up"].case

    def sound(learning_rate: optax.ScalarOrSchedule, decay: float = 0.9) -> Any:
        del decay
        return optabs.narrow_params(optabs.sgd(learning_rate))

    case = Case("sound", sound, 0.1, 0.1, dtype=control.dtype, keeps_dtype=False)
    with declared(case):
        for name in ("check_short_steps_add_up", "check_wide_params_are_refused"):
            CHECKS[name].run(case)


AROUND = {
    "sgd": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "lion": optax.lion(1e-3),
    "lamb": optax.lamb(1e-3),
    "adamw, decayed": optax.adamw(optax.cosine_decay_schedule(1e-2, 4), weight_decay=0.1),
    "muon": optax.contrib.muon(1e-2),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
    "prodigy": optax.contrib.prodigy(),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "nag": optabs.nag(1e-2),
    "adadelta_abs": optabs.adadelta_abs(),
    "dao_e": optabs.dao_e(1e-2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AROUND)
def test_around_any_optimizer_it_steps_as_in_float32(name: str) -> None:
    inner = AROUND[name]
    optimizer = optabs.narrow_params(inner)
    random = np.random.default_rng(11)
    start = {"w": jnp.asarray(random.normal(size=(4, 4)), "f4"), "b": jnp.ones(4)}
    grads = jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), BF16), start)
    wide, wide_state = start, inner.init(start)
    params, state = optax.tree.cast(start, BF16), optimizer.init(start)
    before = jax.tree.map(jnp.result_type, state)
    for _ in range(4):
        params, state = compiled_step(optimizer)(grads, state, params)
        as_float = jax.tree.map(lambda g: g.astype("f4"), grads)
        wide, wide_state = compiled_step(inner)(as_float, wide_state, wide)
    assert jax.tree.map(jnp.result_type, state) == before
    exact = optabs.exact_params(params, state)
    for leaf, other in zip(*map(jax.tree.leaves, (exact, wide)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2.0**-13, atol=2.0**-16)
