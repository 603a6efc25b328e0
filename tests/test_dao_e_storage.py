"""How DAO-E keeps its traces and the step before: bytes, errors, and what comes back."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from trees import assert_close, assert_equal, avals

import optabs
from optabs.mixture.state import inner_product, stored, traced

STORAGES = ("thinned", "bfloat16", "float32")
# sgd keeps nothing, adam two arrays, rmsprop and lion one each: 16 bytes; then four traces,
# and what the multiplier learns from: two thinned arrays in bfloat16.
BYTES = {"float32": 16.25 + 16, "bfloat16": 16.25 + 8, "thinned": 16.25 + 1}


def held(storage: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> int:
    """Bytes of state for one leaf."""
    optimizer = optabs.dao_e(previous=storage)
    state = jax.eval_shape(optimizer.init, jax.ShapeDtypeStruct(shape, dtype))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


class TestBytes:
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
    @pytest.mark.parametrize("storage", STORAGES)
    def test_a_parameter_takes(self, storage: Any, dtype: Any) -> None:
        one, two = (held(storage, (rows, 1024), dtype) for rows in (1024, 2048))
        assert two - one == BYTES[storage] * 1024**2
        assert one < (BYTES[storage] + 0.01) * 1024**2

    def test_thinned_is_the_default(self) -> None:
        state = optabs.dao_e().init(jnp.zeros((320, 128)))
        for expert in state.experts.values():
            assert (expert.trace.shape, expert.trace.dtype) == ((20, 128), jnp.float32)

    def test_what_learns_nothing_keeps_nothing(self) -> None:
        frozen = optabs.dao_e(controller=optabs.Controller.uniform())
        state = jax.eval_shape(frozen.init, jnp.zeros((512, 512)))
        assert {expert.trace for expert in state.experts.values()} == {()}


STORE, PRODUCT = jax.jit(stored, static_argnums=1), jax.jit(inner_product)


def pair(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """A gradient, and an update with entries of very different sizes."""
    random = np.random.default_rng(seed)

    def drawn() -> np.ndarray:
        values = random.normal(size=shape) * 10 ** random.uniform(-4, 0, shape)
        if np.issubdtype(dtype, np.complexfloating):
            return values + 1j * random.normal(size=shape)
        return values

    return jnp.asarray(drawn(), dtype), jnp.asarray(drawn(), dtype)


def by_hand(gradient: Any, update: Any) -> float:
    wide = np.complex128
    return float(np.sum(np.conj(np.asarray(gradient, wide)) * np.asarray(update, wide)).real)


def size_of(gradient: Any, update: Any) -> float:
    """An inner product without signs, which bounds the rounding of the real one."""
    return float(np.sum(np.abs(gradient) * np.abs(update)))


SHAPES = [(), (7,), (5000,), (100, 64), (33, 2, 130), (300, 120)]
STRIDES = {(5000,): 2, (100, 64): 3, (33, 2, 130): 4, (300, 120): 16}


@pytest.mark.parametrize("dtype", [np.float32, np.complex64], ids=["real", "complex"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestProducts:
    def test_float32_is_exact(self, shape: tuple[int, ...], dtype: Any) -> None:
        gradient, update = pair(shape, dtype)
        kept = STORE(update, "float32")
        scale = size_of(gradient, update)
        actual = PRODUCT(gradient, kept)
        assert actual.dtype == jnp.float32
        assert float(actual) == pytest.approx(by_hand(gradient, update), abs=1e-5 * scale)

    def test_bfloat16_is_off_by_half_a_unit_of_its_last_place(
        self, shape: tuple[int, ...], dtype: Any
    ) -> None:
        gradient, update = pair(shape, dtype)
        kept = STORE(update, "bfloat16")
        np.testing.assert_allclose(
            np.asarray(kept, np.complex64),
            update,
            rtol=2**-8 if dtype == np.float32 else 2**-7,
        )
        assert not np.array_equal(np.asarray(kept, np.complex64), update)
        scale = size_of(gradient, update)
        error = abs(float(PRODUCT(gradient, kept)) - by_hand(gradient, update))
        assert error <= 2**-8 * scale

    def test_thinned_keeps_2048_or_a_16th_along_the_longest_axis(
        self, shape: tuple[int, ...], dtype: Any
    ) -> None:
        gradient, update = pair(shape, dtype)
        kept = STORE(update, "thinned")
        if shape not in STRIDES:
            assert_equal(kept, update)
            some, ratio = slice(None), 1.0
            wanted = by_hand(gradient, update)
        else:
            axis = int(np.argmax(shape))
            some = (slice(None),) * axis + (slice(None, None, STRIDES[shape]),)
            assert_equal(kept, update[some])
            assert kept.size >= 2048
            ratio = shape[axis] / kept.shape[axis]
            wanted = ratio * by_hand(gradient[some], update[some])
        assert float(PRODUCT(gradient, kept)) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_thinned_products_are_right_on_average() -> None:
    random = np.random.default_rng(1)
    update = random.normal(size=(400, 64, 70)).astype(np.float32)
    gradient = update + random.normal(size=update.shape).astype(np.float32)
    estimates = jax.jit(jax.vmap(lambda g, u: inner_product(g, stored(u, "thinned"))))(
        gradient, update
    )
    assert float(jnp.mean(estimates)) == pytest.approx(64 * 70, rel=0.02)


@pytest.mark.parametrize("storage", STORAGES)
def test_zeros_and_extremes_are_kept(storage: Any) -> None:
    for size in (0.0, 1e-38, 1e-20, 1e18):
        kept = STORE(np.full((64, 70), size, np.float32), storage)
        assert float(PRODUCT(np.ones((64, 70), np.float32), kept)) == pytest.approx(
            64 * 70 * size, rel=2**-7, abs=1e-25
        )


@functools.cache
def mixed(storage: Any) -> optax.GradientTransformationExtraArgs:
    """Two experts, their update compiled once."""
    optimizer = optabs.dao_e(
        experts={"sgd": optabs.sgd(0.01), "adam": optabs.adam(0.01)},
        features=(),
        previous=storage,
    )
    return optax.GradientTransformationExtraArgs(optimizer.init, jax.jit(optimizer.update))


def position(seed: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = {"large": (64, 72), "small": (8,), "scalar": ()}
    return {name: np.float32(random.normal(size=shape)) for name, shape in shapes.items()}


def advanced(storage: Any, params: Any, state: Any, seeds: range) -> tuple[Any, Any]:
    """Parameters and state after steps on a noisy bowl."""
    for seed in seeds:
        grads = jax.tree.map(lambda p, noise: p + 3 * noise, params, position(100 + seed))
        updates, state = mixed(storage).update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def placed(tree: Any) -> Any:
    """On a device by request, as restored arrays are: programs compile anew for others."""
    return jax.device_put(tree, jax.devices()[0])


def begun(storage: Any, count: int) -> tuple[Any, Any]:
    params = placed(position())
    return advanced(storage, params, placed(mixed(storage).init(params)), range(count))


@pytest.mark.parametrize("storage", STORAGES)
class TestTraining:
    @pytest.mark.slow
    def test_a_restored_state_continues_bit_for_bit(
        self, storage: Any, tmp_path: Path
    ) -> None:
        saved = begun(storage, 5)
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", saved)
            checkpointer.wait_until_finished()
            shapes = jax.eval_shape(lambda: begun(storage, 0))
            restored = checkpointer.restore(tmp_path / "state", shapes)
        assert avals(restored) == avals(saved)
        assert_equal(
            advanced(storage, *restored, range(5, 10)), advanced(storage, *saved, range(5, 10))
        )

    @pytest.mark.slow
    def test_a_real_problem_in_complex_dress_is_the_same(self, storage: Any) -> None:
        turn = np.complex64(0.6 + 0.8j)
        params = placed(position())
        spun = jax.tree.map(lambda leaf: leaf * turn, params)
        state, turned = (placed(mixed(storage).init(each)) for each in (params, spun))
        for seed in range(5):
            grads = placed(position(seed))
            updates, state = mixed(storage).update(grads, state, params)
            dressed = jax.tree.map(lambda leaf: leaf * turn, grads)
            spun_updates, turned = mixed(storage).update(dressed, turned, spun)
            # A turned number is rounded to few bits differently, for the multiplier always.
            atol = 1e-6 if storage in ("float32", "thinned") else 1e-2
            wanted = jax.tree.map(lambda leaf: leaf * turn, updates)
            assert_close(spun_updates, wanted, rtol=2e-3, atol=atol)
        np.testing.assert_allclose(
            turned.controller.weights, state.controller.weights, atol=atol
        )

    @pytest.mark.slow
    def test_narrow_storage_hardly_moves_the_weights(self, storage: Any) -> None:
        ours, wanted = (begun(each, 20)[1].controller.weights for each in (storage, "float32"))
        atol = {"float32": 0.0, "bfloat16": 0.03, "thinned": 0.3}[storage]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=atol)
        assert np.abs(wanted - 0.5).max() > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_a_trace_in_bfloat16_forgets_as_it_should(dtype: Any) -> None:
    """It is 500 times the last updates' mean; rounded to nearest it would be stuck."""
    sizes = jnp.asarray(np.geomspace(0.01, 30.0, 101), dtype)

    def step(trace: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        count, share = now
        return traced(trace, share.astype(dtype) * sizes, 0.998, "bfloat16", count), None

    run = jax.jit(lambda trace, *now: jax.lax.scan(step, trace, now)[0])
    full = run(stored(0 * sizes, "bfloat16"), jnp.arange(3000), jnp.ones(3000))
    wanted = np.asarray(sizes) * (1 - 0.998**3000) / 0.002
    np.testing.assert_allclose(np.asarray(full, dtype), wanted, rtol=0.02)
    half = run(full, jnp.arange(3000, 3346), jnp.zeros(346))
    np.testing.assert_allclose(np.asarray(half, dtype), 0.998**346 * wanted, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("storage", ["bfloat16", "thinned"])
def test_sharded_leaves(storage: Any, kind: AxisType) -> None:
    _, wanted = begun(storage, 5)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    specs = {
        "large": PartitionSpec("x", None),
        "small": PartitionSpec("x"),
        "scalar": PartitionSpec(),
    }
    places = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    optimizer = mixed(storage)
    with jax.set_mesh(mesh):
        params = jax.device_put(position(), places)
        state = optimizer.init(params)
        for seed in range(5):
            noise = jax.device_put(position(100 + seed), places)
            grads = jax.tree.map(lambda p, n: p + 3 * n, params, noise)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    kept = jax.tree.leaves(state.experts["sgd"].trace["large"])[0]
    assert kept.sharding.is_equivalent_to(places["large"], 2)
    np.testing.assert_allclose(state.controller.weights, wanted.controller.weights, atol=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("params", "grads"),
    [
        ("float64", "float32"),
        ("float64", "bfloat16"),
        ("float32", "float64"),
        ("complex128", "complex64"),
        ("complex64", "complex128"),
    ],
)
def test_state_keeps_its_dtypes_where_gradients_have_another_width(
    params: str, grads: str, storage: Any
) -> None:
    with jax.enable_x64(True):
        optimizer = optabs.dao_e(0.1, previous=storage)
        given, gradient = (jax.ShapeDtypeStruct((64, 128), each) for each in (params, grads))
        state = jax.eval_shape(optimizer.init, given)
        updates, new = jax.eval_shape(optimizer.update, gradient, state, given)
        assert updates.dtype == grads
        assert avals(new) == avals(state)
