"""DAO-E where training runs: loops, wrappers, `fit`, flax, and eight devices."""

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from trees import assert_close, assert_equal

import optabs

RATE = 0.02
# The default; one object for many tests.
MIXED = optabs.dao_e(RATE)
PLAIN = optabs.dao_e(RATE, features=())


def batches(count: int = 8, size: int = 16) -> tuple[jax.Array, jax.Array]:
    """Inputs [count, size, 3] and targets [count, size, 2]."""
    rows = regression.data(count * size)
    return jax.tree.map(lambda leaf: leaf.reshape(count, size, -1), rows)


def stepping(optimizer: Any, loss_fn: Any = regression.loss_fn) -> Callable[..., Any]:
    """A step that tells the optimizer the loss and the batch."""

    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params, value=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


def trained(optimizer: Any, count: int = 8) -> Any:
    """Parameters and state after a compiled loop with value= and batch=."""
    step = stepping(optimizer)

    @jax.jit
    def run(params: Any, batches: Any) -> Any:
        carry = params, optimizer.init(params)
        return jax.lax.scan(lambda c, batch: (step(*c, batch), None), carry, batches)[0]

    return run(regression.params(), batches(count))


@pytest.fixture(scope="module")
def plain() -> Any:
    return trained(MIXED)


@pytest.fixture(scope="module")
def without_features() -> Any:
    return trained(PLAIN)


class TestLoops:
    def test_scan_is_the_loop_of_compiled_steps(self, plain: Any) -> None:
        step = jax.jit(stepping(MIXED))
        params = regression.params()
        state = MIXED.init(params)
        for index in range(8):
            batch = jax.tree.map(lambda leaf, i=index: leaf[i], batches())
            params, state = step(params, state, batch)
        assert_close((params, state), plain, rtol=1e-4, atol=1e-5)
        assert list(state.observing.seen) == [8, 8, 8, 8, 7, 8, 7]

    def test_donated_buffers_are_used(self, plain: Any) -> None:
        step = jax.jit(stepping(MIXED), donate_argnums=(0, 1))
        params = jax.tree.map(jnp.copy, regression.params())
        state = MIXED.init(params)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "Some donated buffers were not usable"
            for index in range(8):
                given = jax.tree.leaves((params, state))
                batch = jax.tree.map(lambda leaf, i=index: leaf[i], batches())
                params, state = step(params, state, batch)
                assert all(leaf.is_deleted() for leaf in given)
        assert_close((params, state), plain, rtol=1e-4, atol=1e-5)

    def test_fit_passes_the_loss_and_the_batch(self) -> None:
        optimizer = optabs.dao_e(0.1)
        result = optabs.fit(
            regression.loss_fn,
            regression.params(),
            optimizer,
            regression.data(),
            batch_size=11,
            epochs=30,
        )
        assert result.history["loss"][-1] < 0.05 * result.history["loss"][0]
        assert list(result.opt_state.observing.seen) == [60, 60, 60, 60, 59, 60, 59]
        weights = optabs.mixing_weights(result.opt_state)
        assert sum(map(float, weights.values())) == pytest.approx(1, rel=1e-6)
        assert max(map(float, weights.values())) > 0.3


class TestWrappers:
    def test_clipping_before_and_decay_after(self) -> None:
        """The mixture sees clipped gradients, and has no share in the decay."""
        chained = optax.chain(
            optax.clip_by_global_norm(0.1), MIXED, optax.add_decayed_weights(-0.01)
        )
        params, state = trained(chained)
        theta, own = regression.params(), MIXED.init(regression.params())

        @jax.jit
        def by_hand(theta: Any, own: Any, batch: Any) -> Any:
            loss, grads = jax.value_and_grad(regression.loss_fn)(theta, batch)
            shrink = jnp.minimum(1.0, 0.1 / optax.tree.norm(grads))
            grads = jax.tree.map(lambda g: shrink * g, grads)
            updates, own = MIXED.update(grads, own, theta, value=loss, batch=batch)
            return jax.tree.map(lambda p, u: p + u - 0.01 * p, theta, updates), own

        for index in range(8):
            batch = jax.tree.map(lambda leaf, i=index: leaf[i], batches())
            theta, own = by_hand(theta, own, batch)
        assert_close((params, state[1]), (theta, own), rtol=1e-4, atol=1e-5)

    def test_multi_steps_is_one_step_on_the_mean(self) -> None:
        every = optax.MultiSteps(MIXED, 2)
        _, state = trained(every)
        halves, update_mixed = batches(), jax.jit(MIXED.update)
        params, own = regression.params(), MIXED.init(regression.params())
        value_and_grad = jax.jit(jax.value_and_grad(regression.loss_fn))
        for index in range(0, 8, 2):
            micro = [
                jax.tree.map(lambda leaf, i=i: leaf[i], halves) for i in (index, index + 1)
            ]
            (_, one), (loss, other) = (value_and_grad(params, batch) for batch in micro)
            mean = jax.tree.map(lambda a, b: (a + b) / 2, one, other)
            # optax passes on what the last micro-step was told.
            updates, own = update_mixed(mean, own, params, value=loss, batch=micro[1])
            params = optax.apply_updates(params, updates)
        assert_close(state.inner_opt_state, own, rtol=1e-4, atol=1e-5)

    def test_an_injected_rate_changes_without_another_compilation(self) -> None:
        injected = optax.inject_hyperparams(optabs.dao_e)(learning_rate=RATE)
        traces = []

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            traces.append(1)
            return regression.loss_fn(params, batch)

        step = jax.jit(stepping(injected, loss_fn))
        params, batch = regression.params(), jax.tree.map(lambda leaf: leaf[0], batches())
        state = injected.init(params)
        after, state = step(params, state, batch)
        state.hyperparams["learning_rate"] = jnp.float32(0.0)
        still, state = step(after, state, batch)
        assert_equal(still, after)
        state.hyperparams["learning_rate"] = jnp.float32(RATE)
        assert not np.array_equal(step(still, state, batch)[0]["w"], still["w"])
        assert len(traces) == 1

    def test_nnx_optimizer_is_the_loop_on_its_parameters(self) -> None:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, MIXED, wrt=nnx.Param)

        def loss_of(model: Any, batch: Any) -> jax.Array:
            return optabs.losses.mse(model(batch[0]), batch[1]).mean()

        @nnx.jit
        def train(model: Any, optimizer: Any, batch: Any) -> None:
            loss, grads = nnx.value_and_grad(loss_of)(model, batch)
            optimizer.update(model, grads, value=loss, batch=batch)

        graph, start = nnx.split(model)
        step = jax.jit(stepping(MIXED, lambda p, batch: loss_of(nnx.merge(graph, p), batch)))
        params = jax.tree.map(jnp.copy, start)
        state = MIXED.init(params)
        for index in range(4):
            batch = jax.tree.map(lambda leaf, i=index: leaf[i], batches())
            train(model, optimizer, batch)
            params, state = step(params, state, batch)
        assert_close(
            nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(params), rtol=1e-4, atol=1e-5
        )
        ours = optabs.mixing_weights(optimizer.opt_state)
        assert_close(ours, optabs.mixing_weights(state), rtol=1e-4, atol=1e-5)
        for tree in optabs.mixing_weights(optimizer.opt_state, per_leaf=True).values():
            assert set(nnx.to_pure_dict(tree)) == {"kernel", "bias"}


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda mixed: optax.chain(optax.clip(10.0), mixed, optax.identity()),
    "masked": lambda mixed: optax.masked(mixed, {"w": True, "b": True}),
    "MultiSteps": lambda mixed: optax.MultiSteps(mixed, 1),
    "inject_hyperparams": lambda _: optax.inject_hyperparams(
        functools.partial(optabs.dao_e, features=())
    )(learning_rate=RATE),
    "apply_if_finite": lambda mixed: optax.apply_if_finite(mixed, 3),
}


class TestMixingWeights:
    @pytest.mark.parametrize("name", WRAPPERS)
    def test_inside(self, name: str, without_features: Any) -> None:
        _, state = trained(WRAPPERS[name](PLAIN))
        weights = optabs.mixing_weights(state)
        assert_close(weights, optabs.mixing_weights(without_features[1]), rtol=1e-4)
        assert list(weights) == ["adam", "lion", "rmsprop", "sgd"]
        assert sum(map(float, weights.values())) == pytest.approx(1, rel=1e-6)
        assert max(map(float, weights.values())) > 0.27
        by_leaf = optabs.mixing_weights(state, per_leaf=True)
        for expert, tree in by_leaf.items():
            assert jax.tree.structure(tree) == jax.tree.structure(regression.params())
            mean = np.mean([float(leaf) for leaf in jax.tree.leaves(tree)])
            assert mean == pytest.approx(float(weights[expert]), rel=1e-6)
        for leaf in ("w", "b"):
            total = sum(float(tree[leaf]) for tree in by_leaf.values())
            assert total == pytest.approx(1, rel=1e-6)

    def test_of_one_array_and_of_arrays_on_the_host(self) -> None:
        optimizer = optabs.dao_e(features=())
        for params in (jnp.ones(2), jnp.ones(1), regression.params()):
            state = optimizer.init(params)
            for each in (state, jax.device_get(state)):
                weights = optabs.mixing_weights(each, per_leaf=True)
                wanted = jax.tree.map(lambda _: np.float32(0.25), params)
                assert_equal(weights, dict.fromkeys(weights, wanted))


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
    assert np.abs(wanted.controller.mixing - 0.25).max() > 0.1
    for one, other in zip(states, on_one_device, strict=True):
        np.testing.assert_allclose(
            one.observing.average, other.observing.average, rtol=1e-4, atol=1e-4
        )
    leaves, experts = 3, 4
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
