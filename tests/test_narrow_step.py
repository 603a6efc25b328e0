"""Steps in kernels: the same results, where kernels run, and where they do not."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optabs
from optabs.precision import full_precision
from optabs.storage import kernel
from optabs.storage.codecs import is_node
from optabs.storage.conversion import updated
from optabs.storage.narrow_step import in_kernels

PARAMS = {"w": jnp.full((64, 128), 0.5), "b": jnp.zeros(128)}
RATE = optax.cosine_decay_schedule(1e-3, 100)
ENTRYWISE = {
    "adam_abs": optabs.adam_abs(1e-3),
    "adamw_abs": optabs.adamw_abs(RATE),
    "steady": optabs.adam_abs(1e-3, steady=True),
    "adagrad": optabs.adagrad(1e-2),
    "clipped": optax.chain(optax.clip(0.1), optabs.rmsprop_abs(1e-3)),
    "optax_adamw": optax.adamw(RATE),
    "optax_lion": optax.lion(1e-3),
    "optax_nesterov": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "optax_injected": optax.inject_hyperparams(optax.nadam)(1e-3),
}
OTHERS = {
    "norm": optax.chain(optax.clip_by_global_norm(1.0), optabs.adam_abs(1e-3)),
    "factored": optax.adafactor(1e-3, momentum=0.9),
    "sums": optabs.adam_abs(1e-3),  # among its moments is none that is encoded
}


def gradient(seed: int, params: Any = PARAMS) -> Any:
    keys = optax.tree.split_key_like(jax.random.key(seed), params)
    return jax.tree.map(
        lambda key, p: jax.random.normal(key, p.shape).astype(p.dtype), keys, params
    )


def plain(transformation: Any, **extra: Any) -> Any:
    inner = full_precision(transformation)

    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = updated(inner, grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def interpreted(transformation: Any, **extra: Any) -> Any:
    """The step with its kernels, which run without a GPU."""
    inner = full_precision(transformation)

    def step(grads: Any, state: Any, params: Any) -> Any:
        results = plain(transformation, **extra)(grads, state, params)
        return in_kernels(inner, grads, state, params, extra, results, interpret=True)

    return step


def kernels(step: Any, *arguments: Any, platform: str = "cuda") -> int:
    """How many there are in the program for a kind of device."""
    traced = jax.jit(step).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("xla.gpu.triton")


def assert_alike(ours: Any, theirs: Any) -> None:
    """The same but for roundings of float32: then one code in many is its neighbour."""
    for one, other in zip(
        *(jax.tree.leaves(optabs.decode_state(x)) for x in (ours, theirs)), strict=True
    ):
        near = np.isclose(one, other, rtol=1e-5, atol=1e-7)
        assert near.mean() > 0.999
        np.testing.assert_allclose(one, other, rtol=0.3, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("steady", "adagrad") else ())
        for name in ENTRYWISE
    ],
)
def test_kernels_do_what_the_update_does(name: str) -> None:
    transformation = ENTRYWISE[name]
    state = optabs.narrow_state(transformation).init(PARAMS)
    assert kernels(optabs.narrow_step(transformation), PARAMS, state, PARAMS) == 1
    ours = theirs = (PARAMS, state)
    compiled = [jax.jit(step(transformation)) for step in (interpreted, plain)]
    for seed in range(2):
        ours = compiled[0](gradient(seed), ours[1], ours[0])
        theirs = compiled[1](gradient(seed), theirs[1], theirs[0])
    assert_alike(ours, theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


@pytest.mark.parametrize(
    ("codecs", "dtype"),
    [
        ({"mu": "bfloat16", "nu": "float16"}, "float32"),
        ({"mu": "int8_float", "nu": "uint8_float"}, "float32"),
        ({"mu": "float32", "nu": "uint8_linear"}, "bfloat16"),
    ],
    ids=str,
)
def test_every_codec_and_dtype_has_a_kernel(codecs: dict[str, str], dtype: str) -> None:
    params = jnp.full((32, 256), 0.5, dtype)
    transformation = optabs.adam_abs(1e-3)
    state = optabs.narrow_state(transformation, codecs).init(params)
    grads = gradient(1, params)
    assert kernels(optabs.narrow_step(transformation), grads, state, params) == 1
    ours, theirs = (
        jax.jit(step(transformation))(grads, state, params) for step in (interpreted, plain)
    )
    assert ours[0].dtype == params.dtype
    assert_alike(ours, theirs)


@pytest.mark.parametrize("name", OTHERS)
def test_what_looks_at_other_entries_has_no_kernel(name: str) -> None:
    transformation = OTHERS[name]
    codecs = {"mu": "float32", "nu": "float32"} if name == "sums" else None
    state = optabs.narrow_state(transformation, codecs).init(PARAMS)
    step = optabs.narrow_step(transformation)
    assert kernels(step, PARAMS, state, PARAMS) == 0
    found = jax.jit(step)(gradient(0), state, PARAMS)
    wanted = jax.jit(plain(transformation))(gradient(0), state, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    "scaled",
    [
        lambda u: u if u.ndim == 1 else 2 * u,
        lambda u: u * u.shape[0],
        lambda u: u * jnp.sqrt(u.shape[-1]),
        jnp.cumsum,
        lambda u: u * jnp.arange(u.size, dtype=u.dtype).reshape(u.shape),
        lambda u: u * jnp.ones((u.size,)).reshape(u.shape),
    ],
)
def test_what_depends_on_the_shape_has_no_kernel(scaled: Any) -> None:
    params = jnp.zeros(8192)
    transformation = optax.chain(
        optabs.adam_abs(1e-3),
        optax.stateless(lambda updates, _: jax.tree.map(scaled, updates)),
    )
    state = optabs.narrow_state(transformation).init(params)
    assert kernels(optabs.narrow_step(transformation), params, state, params) == 0


def test_elsewhere_than_on_a_gpu_there_is_no_kernel() -> None:
    transformation = optabs.adam_abs(1e-3)
    optimizer, step = optabs.narrow_state(transformation), optabs.narrow_step(transformation)
    state = optimizer.init(PARAMS)
    assert kernels(step, PARAMS, state, PARAMS, platform="cpu") == 0
    params, new = jax.jit(step)(gradient(0), state, PARAMS)
    updates, wanted = jax.jit(optimizer.update)(gradient(0), state, PARAMS)
    np.testing.assert_allclose(params["w"], PARAMS["w"] + updates["w"], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, new, wanted)


def test_without_triton_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    transformation = optabs.adam_abs(1e-3)
    state = optabs.narrow_state(transformation).init(PARAMS)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    assert kernels(optabs.narrow_step(transformation), PARAMS, state, PARAMS) == 0


def test_arrays_in_flaxs_boxes_have_no_kernel() -> None:
    params = nnx.state(nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.Param)
    transformation = optabs.adam_abs(1e-3)
    optimizer, step = optabs.narrow_state(transformation), optabs.narrow_step(transformation)
    state = optimizer.init(params)
    assert any(map(is_node, jax.tree.leaves(state, is_leaf=is_node)))
    assert kernels(step, params, state, params) == 0
    found, wanted = (
        jax.jit(each)(params, state, params) for each in (step, plain(transformation))
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_only_leaves_of_powers_of_two_have_kernels() -> None:
    params = {
        "even": jnp.zeros((128, 64)),
        "three": jnp.zeros((128, 48)),  # blocks of 48
        "odd": jnp.zeros((129, 64)),  # one row of 64 at a time is too small
    }
    transformation = optabs.adam_abs(1e-3)
    state = optabs.narrow_state(transformation).init(params)
    assert sum(map(is_node, jax.tree.leaves(state, is_leaf=is_node))) == 6
    assert kernels(optabs.narrow_step(transformation), params, state, params) == 1


@pytest.mark.parametrize(
    ("size", "blocks", "wanted"),
    [
        (8192, {64}, (128, 64, 32)),
        (64 * 129, {64}, None),
        (96 * 48, {48}, None),
        (4096, {64, 32}, None),
        (3 * 4096, set(), (96, 128, 16)),
        (16 * 1024, {16}, (1024, 16, 128)),
        (4097, set(), None),
    ],
)
def test_tiles_are_powers_of_two(
    size: int, blocks: set[int], wanted: tuple[int, int, int] | None
) -> None:
    found = kernel.layout_of(size, blocks)
    assert found == wanted
    assert found is None or found.rows * found.width == size


def test_a_kernel_reads_scalars_of_the_outer_program() -> None:
    state = optabs.narrow_state(optabs.adam_abs(1e-3)).init(PARAMS)

    def with_rate(step: Any, rate: Any, value: Any) -> Any:
        transformation = optax.chain(
            optabs.adam_abs(rate),
            optax.stateless(
                lambda updates, params: jax.tree.map(lambda u: u * value, updates)
            ),
        )
        wrapped = state._replace(inner=(state.inner, optax.EmptyState()))
        return step(transformation)(gradient(0), wrapped, PARAMS)

    ours, theirs = (
        jax.jit(lambda rate, value, step=step: with_rate(step, rate, value)[0])(0.1, 2.0)
        for step in (interpreted, plain)
    )
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-5)
    assert abs(float(ours["w"][0, 0]) - 0.5) == pytest.approx(0.2, rel=1e-3)


def test_what_is_not_finite_stays_visible_in_kernels() -> None:
    transformation = optabs.adam_abs(1e-3)
    state = optabs.narrow_state(transformation).init(PARAMS)
    grads = gradient(0)
    grads["w"] = grads["w"].at[3, 5].set(jnp.nan)
    params, state = jax.jit(interpreted(transformation))(grads, state, PARAMS)
    assert np.isnan(params["w"]).sum() == 1
    moment = np.asarray(optax.tree.get(optabs.decode_state(state), "nu")["w"])
    assert np.isnan(moment[3, :64]).all()
    assert np.isfinite(np.delete(moment, 3, 0)).all()


def test_a_state_of_another_format_becomes_nan_in_kernels() -> None:
    transformation = optabs.adam_abs(1e-3)
    state = optabs.narrow_state(transformation).init(PARAMS)
    wrong = state._replace(format=state.format + 1)
    params, _ = jax.jit(interpreted(transformation))(gradient(0), wrong, PARAMS)
    assert np.isnan(params["w"]).all()
    with pytest.raises(ValueError, match="state has the format"):
        optabs.narrow_step(transformation)(gradient(0), wrong, PARAMS)
    with pytest.raises(ValueError, match=r"state is a tuple, which narrow_state has not made"):
        optabs.narrow_step(transformation)(gradient(0), state.inner, PARAMS)


def test_sharded_arrays_have_no_kernels() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    transformation = optabs.adam_abs(1e-3)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("x"))
        params = {"w": jax.device_put(PARAMS["w"], sharding)}
        state = optabs.narrow_state(transformation).init(params)
        assert kernels(optabs.narrow_step(transformation), params, state, params) == 0
