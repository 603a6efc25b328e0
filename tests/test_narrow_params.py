"""Parameters in bfloat16 with 8 bits in the state: exact to the bit, and kept from harm."""

import functools
import warnings
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
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
from trees import declared

import optabs

BF16 = jnp.bfloat16
GIVEN = optabs.narrow_params(optax.identity())  # the gradient is the step
LARGEST = float(jnp.finfo(BF16).max)
INFINITY = np.int64(0x7F800000)


# The reference: numbers as whole numbers, float32 by its 32 bits and bfloat16 by 16.


def words(values: Any) -> np.ndarray:
    """A float's bits but its sign."""
    wide = np.asarray(values).astype(np.float32).view(np.uint32).astype(np.int64)
    return wide & 0x7FFFFFFF


def rounded(values: np.ndarray) -> np.ndarray:
    """To 24 bits, as float32."""
    kept = np.minimum((words(values) + 0x80) >> 8 << 8, 0x7F7F7F00)
    return np.copysign(kept.astype(np.uint32).view(np.float32), values)


def nearest(values: np.ndarray) -> np.ndarray:
    """The bfloat16 of 24 bits, halves away from zero."""
    upper = ((words(values) + 0x8000) >> 16).astype(np.uint16)
    sign = np.signbit(values).astype(np.uint16) << 15
    return (upper | sign).view(ml_dtypes.bfloat16)


def random_values(size: int, seed: int, octaves: int = 100) -> np.ndarray:
    random = np.random.default_rng(seed)
    sizes = random.uniform(1, 2, size) * 2.0 ** random.integers(-octaves, octaves, size)
    return (sizes * random.choice([-1.0, 1.0], size)).astype(np.float32)


def random_state(size: int, seed: int, octaves: int = 100) -> tuple[np.ndarray, Any, Any]:
    """24-bit values, and the parameters and state that hold them."""
    values = rounded(random_values(size, seed, octaves))
    # A cast rounds halves to even and GIVEN rounds them up, so that some have no bits.
    values[words(values) & 0xFFFF == 0x8000] = 1.0
    state = GIVEN.init(jnp.asarray(values))
    return values, jnp.asarray(values).astype(BF16), state


@functools.cache
def compiled_step(optimizer: Any) -> Any:
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def eager_step(optimizer: Any, grads: Any, state: Any, params: Any) -> Any:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("octaves", [1, 12, 24], ids=lambda n: f"steps within {n} octaves")
def test_the_bits_are_those_of_the_reference(octaves: int, mode: str) -> None:
    values, params, state = random_state(20_000, 1)
    np.testing.assert_array_equal(optabs.exact_params(params, state), values)
    random = np.random.default_rng(2)
    relative = random.normal(size=values.size) * 2.0 ** random.uniform(
        -octaves, 0, values.size
    )
    steps = (values * relative).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = rounded((values + steps).astype(np.float32))
    run = compiled_step(GIVEN) if mode == "compiled" else functools.partial(eager_step, GIVEN)
    after, new = run(jnp.asarray(steps), state, params)
    ratio = np.abs(wanted / values)
    near = (ratio < 2.0**16) & (ratio > 2.0**-15)
    assert near.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(after)[near], nearest(wanted)[near])
    np.testing.assert_array_equal(optabs.exact_params(after, new)[near], wanted[near])


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("octaves", [-15, -17, -20, -24, -30, 15, 17, 30, 60])
def test_far_steps_keep_bits_of_what_is_reached(octaves: int, mode: str) -> None:
    values, params, state = random_state(5_000, 3, 60)
    wanted = rounded(values * random_values(values.size, 4, 1) * np.float32(2.0**octaves))
    steps = wanted - values  # in float32: values + steps is not everywhere what was wanted
    wanted = rounded(values + steps)
    run = compiled_step(GIVEN) if mode == "compiled" else functools.partial(eager_step, GIVEN)
    after, new = run(jnp.asarray(steps), state, params)
    reached = np.asarray(after)
    if octaves > -15:  # larger, by whatever, is arrived at
        np.testing.assert_array_equal(reached, nearest(wanted))
    exact = np.asarray(optabs.exact_params(after, new))
    np.testing.assert_array_equal(nearest(exact), reached)
    # Of the 256 values around what is reached the nearest; next to 0 there is only 0.
    lowest, highest = words(reached) - (128 << 8), words(reached) + (127 << 8)
    clipped = np.where(words(reached) == 0, 0, np.clip(words(wanted), lowest, highest))
    np.testing.assert_array_equal(words(exact), clipped)


def test_init_from_float32_keeps_24_bits() -> None:
    values = random_values(20_000, 5)
    ties = (words(values[:100]) & ~0xFFFF | 0x8000).astype(np.uint32).view(np.float32)
    values[:100] = ties  # which a cast rounds to even, and so some of them down
    state = GIVEN.init(jnp.asarray(values))
    narrow = jnp.asarray(values).astype(BF16)
    exact = np.asarray(optabs.exact_params(narrow, state))
    units = np.abs(words(exact) - words(values))
    assert np.quantile(units, 0.98) <= 0x80  # half of the last of 24 bits
    assert units.max() == 0x100  # 127 is kept where 128 is wanted
    # From bfloat16 there is nothing to keep.
    plain = GIVEN.init(narrow)
    assert not np.asarray(plain.bits).any()
    np.testing.assert_array_equal(optabs.exact_params(narrow, plain), narrow.astype("f4"))


def test_init_of_descriptions() -> None:
    for dtype in (jnp.float32, BF16):
        params = {"w": jnp.ones((3, 2), dtype), "s": jnp.ones((), dtype)}
        shapes = jax.eval_shape(lambda params=params: params)
        optimizer = optabs.narrow_params(optabs.adam(1e-3))
        wanted = jax.eval_shape(lambda params=params, own=optimizer: own.init(params))
        for state in (optimizer.init(shapes), jax.eval_shape(optimizer.init, shapes)):
            assert jax.tree.structure(state) == jax.tree.structure(wanted)
            for leaf, other in zip(*map(jax.tree.leaves, (state, wanted)), strict=True):
                assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)
        assert wanted.bits["w"].dtype == jnp.int8


def test_short_steps_add_up_in_the_long_run() -> None:
    """A thousand steps of a thousandth of bfloat16's own, and a control without the bits."""
    params = jnp.ones(4, BF16)
    grads = -jnp.asarray([1.0, 0.5, 0.25, -1.0])
    optimizer = optabs.narrow_params(optabs.sgd(2.0**-16))
    state = optimizer.init(params)
    control, bare = params, optabs.sgd(2.0**-16)
    step = compiled_step(optimizer)
    for _ in range(1024):
        params, state = step(grads, state, params)
        updates, _ = bare.update(grads, bare.init(control), control)
        control = optax.apply_updates(control, updates)
    np.testing.assert_array_equal(control, jnp.ones(4, BF16))
    exact = optabs.exact_params(params, state)
    # A step of 2**-18 is rounded off, as it says: next to 1, 24 bits are 2**-15 apart.
    np.testing.assert_array_equal(exact[2], 1.0)
    np.testing.assert_array_equal(exact[3], 1 - 1024 * 2.0**-16)
    assert exact[0] > 1


class Seen(NamedTuple):
    """State of a transformation that looks at what it is given."""

    params: Any
    grads: Any


def spy() -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda p: -0.01 * p, params), Seen(params, grads)

    return optax.GradientTransformation(lambda params: Seen(params, params), update)


def test_the_transformation_sees_the_exact_parameters_and_float32_gradients() -> None:
    values = rounded(random_values(100, 6, 3))
    optimizer = optabs.narrow_params(spy())
    params, state = jnp.asarray(nearest(values)), optimizer.init(jnp.asarray(values))
    for _ in range(3):
        exact = optabs.exact_params(params, state)
        params, state = eager_step(optimizer, jnp.ones(100, BF16), state, params)
        np.testing.assert_array_equal(state.inner.params, exact)
        assert state.inner.params.dtype == state.inner.grads.dtype == jnp.float32
        wanted = rounded(np.asarray(exact) + np.float32(-0.01) * np.asarray(exact))
        np.testing.assert_array_equal(optabs.exact_params(params, state), wanted)


def quadratic(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    inputs = jnp.asarray(random.normal(size=(64, 8)), jnp.float32)
    start = {"w": jnp.asarray(random.normal(size=(8, 3)), jnp.float32), "b": jnp.ones(3) / 4}
    targets = inputs @ (start["w"] + jnp.asarray(random.uniform(-0.5, 0.5, (8, 3)), "f4"))

    def loss(params: Any) -> Any:
        out = inputs @ params["w"].astype(jnp.float32) + params["b"].astype(jnp.float32)[None]
        return jnp.mean(jnp.square(out - targets))

    return loss, start


def trained(optimizer: Any, start: Any, loss: Any, count: int, dtype: Any) -> Any:
    @jax.jit
    def run(params: Any, state: Any) -> Any:
        def advance(carry: Any, _: Any) -> Any:
            params, state = carry
            return eager_step(optimizer, jax.grad(loss)(params), state, params), None

        return jax.lax.scan(advance, (params, state), length=count)[0]

    return run(optax.tree.cast(start, dtype), optimizer.init(start))


def test_it_trains_as_float32_does() -> None:
    """AdamW at a rate whose steps are half of bfloat16's; a control without the bits."""
    loss, start = quadratic(0)
    adamw = optabs.adamw(1e-3, weight_decay=1e-2)
    wide, _ = trained(adamw, start, loss, 1500, jnp.float32)
    narrow, state = trained(optabs.narrow_params(adamw), start, loss, 1500, BF16)
    control, _ = trained(adamw, start, loss, 1500, BF16)
    exact = optabs.exact_params(narrow, state)
    first, *losses = (float(loss(each)) for each in (start, wide, exact, control))
    assert losses[0] < 1e-4 * first
    assert losses[1] < 1e-4 * first
    assert losses[2] > 0.5 * first


@pytest.mark.parametrize("unroll", [False, True], ids=["scan", "unrolled"])
def test_many_steps_in_one_program_are_the_same(unroll: bool) -> None:
    """XLA may leave out that a float32 was a bfloat16 in between."""
    loss, start = quadratic(1)
    optimizer = optabs.narrow_params(optabs.sgd(1e-2))
    apart = optax.tree.cast(start, BF16), optimizer.init(start)
    for _ in range(6):
        grads = jax.jit(jax.grad(loss))(apart[0])
        apart = eager_step(optimizer, grads, apart[1], apart[0])
    if unroll:

        @jax.jit
        def run(params: Any, state: Any) -> Any:
            for _ in range(6):
                params, state = eager_step(optimizer, jax.grad(loss)(params), state, params)
            return params, state

        together = run(optax.tree.cast(start, BF16), optimizer.init(start))
    else:
        together = trained(optimizer, start, loss, 6, BF16)
    found, wanted = (optabs.exact_params(*each) for each in (together, apart))
    for leaf, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2.0**-14, atol=2.0**-20)


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
def test_an_update_that_is_not_finite_is_seen_and_can_be_left_out(bad: float) -> None:
    values, params, state = random_state(4, 7)
    steps = jnp.asarray(values) * jnp.asarray([0.1, bad, 0.1, 0.1])
    updates, new = GIVEN.update(steps, state, params)
    after = np.asarray(optax.apply_updates(params, updates)).astype("f4")
    np.testing.assert_array_equal(np.isfinite(after), [True, False, True, True])
    np.testing.assert_array_equal(np.isnan(after), np.isnan(np.asarray(steps)))
    # Where an update is replaced by 0 the parameter goes on as it was.
    cleaned = optax.apply_updates(params, jnp.where(jnp.isfinite(updates), updates, 0.0))
    np.testing.assert_array_equal(optabs.exact_params(cleaned, new)[1], values[1])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("bits", [-128, -1, 0, 1, 127])
def test_parameters_that_are_not_finite_stay_so(bad: float, bits: int) -> None:
    params = jnp.asarray([bad, -bad, 0.0, -0.0, LARGEST, -LARGEST], BF16)
    state = GIVEN.init(params)._replace(bits=jnp.full(6, bits, jnp.int8))
    for _ in range(3):
        exact = np.asarray(optabs.exact_params(params, state))
        np.testing.assert_array_equal(exact[:2], [bad, -bad])
        np.testing.assert_array_equal(exact[2:4], [0.0, 0.0])
        assert np.isfinite(exact[4:]).all()
        params, state = eager_step(GIVEN, jnp.zeros(6), state, params)
    np.testing.assert_array_equal(np.asarray(params[:2]).astype("f4"), [bad, -bad])


def test_a_finite_step_stays_finite() -> None:
    """What would be rounded up to infinity is the largest bfloat16."""
    params = jnp.asarray([LARGEST, -LARGEST], BF16)
    beyond = float(jnp.finfo(jnp.float32).max) - LARGEST
    after, state = eager_step(
        GIVEN, jnp.asarray([beyond, -beyond]), GIVEN.init(params), params
    )
    np.testing.assert_array_equal(after, params)
    assert np.isfinite(np.asarray(optabs.exact_params(after, state))).all()


def test_guards_go_inside() -> None:
    """There they see float32 alone; around it they want gradients of that dtype."""
    optimizer = optabs.narrow_params(optax.apply_if_finite(optabs.adam(0.1), 3))
    values, params, state = random_state(8, 8)
    state = optimizer.init(jnp.asarray(values))
    updates, state = jax.jit(optimizer.update)(jnp.full(8, jnp.nan, BF16), state, params)
    assert not np.asarray(updates).any()
    np.testing.assert_array_equal(optabs.exact_params(params, state), values)


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
    assert len(text) <= 300
    assert text.endswith(".")
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
    for wrapper in (optabs.narrow_state, optabs.full_precision):
        outside = wrapper(optabs.narrow_params(ADAM))
        with pytest.raises(ValueError, match="inside of narrow_params") as error:
            outside.update(grads, outside.init(params), params)
        assert len(str(error.value)) <= 300
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
    assert text.endswith(".")
    assert "pass " in text or "cast " in text or "give " in text
    assert "\n" not in text
    assert len(text) <= 300


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


@pytest.mark.slow
def test_fit_trains_them() -> None:
    loss, start = quadratic(2)
    optimizer = optabs.narrow_params(optabs.adam(1e-2))
    narrow = optax.tree.cast(start, BF16)
    data = jnp.zeros((1, 1))
    result = optabs.fit(lambda p, _: loss(p), narrow, optimizer, data, epochs=200)
    assert result.params["w"].dtype == BF16
    assert loss(optabs.exact_params(result.params, result.opt_state)) < 1e-2 * loss(start)
