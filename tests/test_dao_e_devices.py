"""DAO-E on eight devices: the weights of one, and only small sums sent between them."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from trees import assert_close

import optabs

EXPERTS = {"lion": optax.lion(0.005), "sgd": optabs.sgd(0.1)}
MIXED = optabs.dao_e(experts=EXPERTS, features=optabs.features.ALL)
SPREAD = {
    "replicated": {"w": PartitionSpec(), "b": PartitionSpec(), "head": PartitionSpec()},
    "sharded": {
        "w": PartitionSpec(None, "model"),
        "b": PartitionSpec("model"),
        "head": PartitionSpec("model", None),
    },
}
FEATURES, HIDDEN, CLASSES, BATCH, STEPS = 10, 14, 6, 32, 20


def images(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and classes that differ from one part of a batch to the next."""
    random = np.random.default_rng(4)
    classes = np.sort(random.integers(0, CLASSES, (steps, BATCH)), axis=1).astype(np.int32)
    inputs = random.normal(size=(steps, BATCH, FEATURES)) + classes[:, :, None]
    return inputs.astype(np.float32), classes


def network() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    shapes = {"w": (FEATURES, HIDDEN), "b": (HIDDEN,), "head": (HIDDEN, CLASSES)}
    return {
        name: random.normal(size=shape).astype(np.float32) / 4
        for name, shape in shapes.items()
    }


def gradients(params: Any, batch: Any) -> Any:
    def loss_fn(params: Any) -> jax.Array:
        inputs, classes = batch
        hidden = jax.nn.relu(inputs @ params["w"] + params["b"][None, :])
        # Explicit meshes want to be told where a sum over devices lies.
        spec = jax.typeof(inputs).sharding.spec
        where = None if not any(spec) else PartitionSpec(spec[0], None)
        logits = jnp.einsum("bh,hc->bc", hidden, params["head"], out_sharding=where)
        rows = jax.nn.one_hot(classes, CLASSES)
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * rows, axis=-1))

    return jax.value_and_grad(loss_fn)(params)


def update(grads: Any, state: Any, params: Any, loss: Any, batch: Any) -> Any:
    updates, state = MIXED.update(grads, state, params, value=loss, batch=batch)
    return optax.apply_updates(params, updates), state


def on_devices(mesh: Mesh, layout: str) -> tuple[Any, Any]:
    params = {
        name: jax.device_put(array, NamedSharding(mesh, SPREAD[layout][name]))
        for name, array in network().items()
    }
    rows = NamedSharding(mesh, PartitionSpec(None, "data"))
    return params, jax.tree.map(lambda array: jax.device_put(array, rows), images(STEPS))


def mesh_of(kind: AxisType) -> Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def run_all(params: Any, batches: Any) -> tuple[Any, str]:
    """States after each step, and the update's compiled program."""
    backward, advance = jax.jit(gradients), None
    state, states = MIXED.init(params), []
    for index in range(STEPS):
        batch = jax.tree.map(lambda leaf, i=index: leaf[i], batches)
        loss, grads = backward(params, batch)
        if advance is None:
            advance = jax.jit(update).lower(grads, state, params, loss, batch).compile()
        params, state = advance(grads, state, params, loss, batch)
        states.append(jax.device_get(state))
    return states, advance.as_text()


@pytest.fixture(scope="module")
def on_one_device() -> Any:
    return run_all(*jax.tree.map(jnp.asarray, (network(), images(STEPS))))[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", SPREAD)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_eight_devices(kind: AxisType, layout: str, on_one_device: Any) -> None:
    """The weights and features of one device, and only small sums are sent for them."""
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        states, program = run_all(*on_devices(mesh, layout))
    ours, wanted = states[-1], on_one_device[-1]
    assert_close(
        optabs.mixing_weights(ours, per_leaf=True),
        optabs.mixing_weights(wanted, per_leaf=True),
        rtol=0,
        atol=1e-5,
    )
    assert np.abs(wanted.controller.weights - 0.5).max() > 0.1
    for one, other in zip(states, on_one_device, strict=True):
        np.testing.assert_allclose(
            one.observing.average, other.observing.average, rtol=1e-4, atol=1e-4
        )
    leaves, experts = 3, len(EXPERTS)
    sizes = sent(program)
    assert sizes <= {1, leaves, experts, leaves * experts, 32, 128}
    assert {32, 128} <= sizes  # the entropy's counts are those of the global batch


def sent(program: str) -> set[int]:
    """The sizes of all arrays that a compiled program sums over devices.

    Fails where anything else is sent.
    """
    kinds = r"all-gather|collective-permute|all-to-all|reduce-scatter|collective-broadcast"
    assert not re.findall(rf"= .*\b(?:{kinds})(?:-start)?\(", program)
    sizes = set()
    for line in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program):
        for shape in re.findall(r"\w+\[([\d,]*)\]", line):
            sizes.add(int(np.prod([int(extent) for extent in shape.split(",") if extent])))
    return sizes


def test_what_is_sent_is_read_from_the_program() -> None:
    """The reader above sees a sum of a large array, and refuses a gather."""
    mesh = mesh_of(AxisType.Auto)
    with jax.set_mesh(mesh):
        rows = jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, PartitionSpec("data")))
        summed = jax.jit(lambda x: (jnp.sum(x, axis=0), jnp.max(x)))
        assert sent(summed.lower(rows).compile().as_text()) == {1, 6}
        whole = NamedSharding(mesh, PartitionSpec())
        gathered = jax.jit(lambda x: x + 1, out_shardings=whole)
        with pytest.raises(AssertionError):
            sent(gathered.lower(rows).compile().as_text())


@pytest.mark.parametrize("width", [1000, pytest.param(1024, marks=pytest.mark.slow)])
def test_partitioned_modules_of_flax(width: int) -> None:
    """What is thinned is an axis that has no name: the others stay divisible."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    start = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
    with jax.set_mesh(mesh):
        model = nnx.Linear(64, width, rngs=nnx.Rngs(0), kernel_init=start)
        optimizer = nnx.Optimizer(model, optabs.dao_e(0.01), wrt=nnx.Param)
        before = np.asarray(model.kernel[...])
        for _ in range(2):
            grads = nnx.grad(lambda model: jnp.mean(model(jnp.ones((5, 64))) ** 2))(model)
            optimizer.update(model, grads)
        kept = optimizer.opt_state.multiplier.step["kernel"]
    assert kept.shape == (4, width)
    assert np.any(np.asarray(model.kernel[...]) != before)
    assert np.all(np.isfinite(model.kernel[...]))


@pytest.mark.parametrize("previous", ["thinned", "float32"])
def test_a_state_goes_on_where_other_axes_would_be_thinned(previous: Any) -> None:
    optimizer = optabs.dao_e(0.1, previous=previous)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    host = np.linspace(-1, 1, 4096 * 64, dtype=np.float32).reshape(4096, 64)
    with jax.set_mesh(mesh):
        params = jax.device_put(host, NamedSharding(mesh, PartitionSpec("x", None)))
        _, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    state, params = jax.device_get(state), jnp.asarray(host)
    assert state.multiplier.step.shape == (4096, 4)
    assert optimizer.init(params).multiplier.step.shape == (256, 64)
    _, state = jax.jit(optimizer.update)(params, state, params)
    assert state.multiplier.step.shape == (4096, 4)
    assert float(state.multiplier.cosines[0]) < -0.1
    with pytest.raises(ValueError, match="state is of other parameters"):
        optimizer.update(params[:, :32], state, params[:, :32])
