"""DAO-E where training runs: loops, wrappers, `fit` and flax."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from flax import nnx
from trees import assert_close, assert_equal

import optabs

RATE = 0.02
FACTORIES: Mapping[str, Any] = {"lion": optax.lion, "sgd": optabs.sgd}
# One object for many tests: with all features, with two that are quickly compiled and need
# the loss and the batch, and without any.
MIXED = optabs.dao_e(RATE, FACTORIES, features=optabs.features.ALL)
TOLD = optabs.dao_e(
    RATE,
    FACTORIES,
    features=((optabs.features.batch_mean, 1), (lambda seen: seen.value, 1)),
)
PLAIN = optabs.dao_e(RATE, FACTORIES)
# Of a step by hand.
SLOPE, UPDATE = jax.jit(jax.value_and_grad(regression.loss_fn)), jax.jit(TOLD.update)


def batches(count: int = 8, size: int = 16) -> tuple[jax.Array, jax.Array]:
    """Inputs [count, size, 3] and targets [count, size, 2]."""
    rows = regression.data(count * size)
    return jax.tree.map(lambda leaf: leaf.reshape(count, size, -1), rows)


def one_by_one(count: int = 8) -> list[Any]:
    """The same batches in a list."""
    arrays = jax.tree.map(np.asarray, batches())
    return [jax.tree.map(lambda leaf, i=i: leaf[i], arrays) for i in range(count)]


def stepping(optimizer: Any, loss_fn: Any = regression.loss_fn) -> Callable[..., Any]:
    """A step that tells the optimizer the loss and the batch."""

    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params, value=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


def trained(optimizer: Any) -> Any:
    """Parameters and state after a compiled loop with value= and batch=."""
    step = stepping(optimizer)

    @jax.jit
    def run(params: Any, batches: Any) -> Any:
        carry = params, optimizer.init(params)
        return jax.lax.scan(lambda c, batch: (step(*c, batch), None), carry, batches)[0]

    return run(regression.params(), batches())


@pytest.fixture(scope="module")
def donating() -> Callable[..., Any]:
    """A compiled step that uses the buffers of its parameters and state again."""
    params = regression.params()
    step = jax.jit(stepping(MIXED), donate_argnums=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Some donated buffers were not usable"
        return step.lower(params, MIXED.init(params), one_by_one()[0]).compile()


@pytest.fixture(scope="module")
def without_features() -> Any:
    return trained(PLAIN)


class TestLoops:
    @pytest.mark.slow
    def test_scan_is_the_loop_of_compiled_steps(self, donating: Callable[..., Any]) -> None:
        params = regression.params()
        state = MIXED.init(params)
        for batch in one_by_one():
            params, state = donating(params, state, batch)
        assert_close((params, state), trained(MIXED), rtol=1e-4, atol=1e-5)
        assert list(state.observing.seen) == [8] * 4

    @pytest.mark.slow
    def test_donated_buffers_are_used(self, donating: Callable[..., Any]) -> None:
        params = regression.params()
        state = MIXED.init(params)
        for batch in one_by_one(3):
            given = jax.tree.leaves((params, state))
            params, state = donating(params, state, batch)
            assert all(leaf.is_deleted() for leaf in given)

    @pytest.mark.slow
    def test_fit_passes_the_loss_and_the_batch(self) -> None:
        optimizer = optabs.dao_e(
            0.1,
            FACTORIES,
            features=optabs.features.ALL,
        )
        result = optabs.fit(
            regression.loss_fn,
            regression.params(),
            optimizer,
            regression.data(),
            batch_size=11,
            epochs=30,
        )
        assert result.history["loss"][-1] < 0.05 * result.history["loss"][0]
        assert list(result.opt_state.observing.seen) == [60] * 4
        weights = optabs.mixing_weights(result.opt_state)
        assert sum(map(float, weights.values())) == pytest.approx(1, rel=1e-6)
        assert max(map(float, weights.values())) > 0.55


class TestWrappers:
    @pytest.mark.slow
    def test_clipping_before_and_decay_after(self) -> None:
        """The mixture sees clipped gradients, and has no share in the decay."""
        chained = optax.chain(
            optax.clip_by_global_norm(0.1), TOLD, optax.add_decayed_weights(-0.01)
        )
        params, state = trained(chained)
        theta, own = regression.params(), TOLD.init(regression.params())
        for batch in one_by_one():
            loss, grads = SLOPE(theta, batch)
            shrink = min(1.0, 0.1 / float(optax.tree.norm(grads)))
            grads = jax.tree.map(lambda g, by=shrink: by * g, grads)
            updates, own = UPDATE(grads, own, theta, value=loss, batch=batch)
            theta = jax.tree.map(lambda p, u: p + u - 0.01 * p, theta, updates)
        assert_close((params, state[1]), (theta, own), rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_multi_steps_is_one_step_on_the_mean(self) -> None:
        _, state = trained(optax.MultiSteps(TOLD, 2))
        params, own = regression.params(), TOLD.init(regression.params())
        halves = one_by_one()
        for micro in zip(halves[::2], halves[1::2], strict=True):
            (_, one), (loss, other) = (SLOPE(params, batch) for batch in micro)
            mean = jax.tree.map(lambda a, b: (a + b) / 2, one, other)
            # optax passes on what the last micro-step was told.
            updates, own = UPDATE(mean, own, params, value=loss, batch=micro[1])
            params = optax.apply_updates(params, updates)
        assert_close(state.inner_opt_state, own, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_an_injected_rate_changes_without_another_compilation(self) -> None:
        injected = injecting(PLAIN)
        traces = []

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            traces.append(1)
            return regression.loss_fn(params, batch)

        step = jax.jit(stepping(injected, loss_fn))
        params, batch = regression.params(), one_by_one()[0]
        state = injected.init(params)
        after, state = step(params, state, batch)
        state.hyperparams["learning_rate"] = jnp.float32(0.0)
        still, state = step(after, state, batch)
        assert_equal(still, after)
        state.hyperparams["learning_rate"] = jnp.float32(RATE)
        assert not np.array_equal(step(still, state, batch)[0]["w"], still["w"])
        assert len(traces) == 1

    @pytest.mark.slow
    def test_nnx_optimizer_is_the_loop_on_its_parameters(self) -> None:
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, TOLD, wrt=nnx.Param)

        @nnx.jit
        def train(model: Any, optimizer: Any, batch: Any) -> None:
            def loss_of(model: Any) -> jax.Array:
                return optabs.losses.mse(model(batch[0]), batch[1]).mean()

            loss, grads = nnx.value_and_grad(loss_of)(model)
            optimizer.update(model, grads, value=loss, batch=batch)

        params = {"w": jnp.copy(model.kernel[...]), "b": jnp.copy(model.bias[...])[None]}
        state = TOLD.init(params)
        for batch in one_by_one(4):
            train(model, optimizer, batch)
            loss, grads = SLOPE(params, batch)
            updates, state = UPDATE(grads, state, params, value=loss, batch=batch)
            params = optax.apply_updates(params, updates)
        ours = {"w": model.kernel[...], "b": model.bias[...][None]}
        assert_close(ours, params, rtol=1e-4, atol=1e-5)
        ours = optabs.mixing_weights(optimizer.opt_state)
        assert_close(ours, optabs.mixing_weights(state), rtol=1e-4, atol=1e-5)
        for tree in optabs.mixing_weights(optimizer.opt_state, per_leaf=True).values():
            assert set(nnx.to_pure_dict(tree)) == {"kernel", "bias"}


def injecting(_: Any) -> Any:
    return optax.inject_hyperparams(optabs.dao_e)(learning_rate=RATE, experts=FACTORIES)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda mixed: optax.chain(optax.clip(10.0), mixed, optax.identity()),
    "masked": lambda mixed: optax.masked(mixed, {"w": True, "b": True}),
    "MultiSteps": lambda mixed: optax.MultiSteps(mixed, 1),
    "inject_hyperparams": injecting,
    "apply_if_finite": lambda mixed: optax.apply_if_finite(mixed, 3),
}


class TestMixingWeights:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", WRAPPERS)
    def test_inside(self, name: str, without_features: Any) -> None:
        _, state = trained(WRAPPERS[name](PLAIN))
        weights = optabs.mixing_weights(state)
        assert_close(weights, optabs.mixing_weights(without_features[1]), rtol=1e-4)
        assert list(weights) == ["lion", "sgd"]
        assert sum(map(float, weights.values())) == pytest.approx(1, rel=1e-6)
        assert max(map(float, weights.values())) > 0.52
        by_leaf = optabs.mixing_weights(state, per_leaf=True)
        for expert, tree in by_leaf.items():
            assert jax.tree.structure(tree) == jax.tree.structure(regression.params())
            mean = np.mean([float(leaf) for leaf in jax.tree.leaves(tree)])
            assert mean == pytest.approx(float(weights[expert]), rel=1e-6)
        for leaf in ("w", "b"):
            total = sum(float(tree[leaf]) for tree in by_leaf.values())
            assert total == pytest.approx(1, rel=1e-6)

    def test_of_one_array_and_of_arrays_on_the_host(self) -> None:
        optimizer = optabs.dao_e()
        for params in (jnp.ones(2), jnp.ones(1), regression.params()):
            state = optimizer.init(params)
            for each in (state, jax.device_get(state)):
                weights = optabs.mixing_weights(each, per_leaf=True)
                wanted = jax.tree.map(lambda _: np.float32(0.25), params)
                assert list(weights) == ["adam", "lion", "rmsprop", "sgd"]
                assert_equal(weights, dict.fromkeys(weights, wanted))


OUTLIERS = {
    "one": lambda t: jnp.where(t == 20, 1e3, 1.0),
    "the first": lambda t: jnp.where(t == 0, 1e3, 1.0),
    "recurring": lambda t: jnp.where(t % 500 == 7, 100.0, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["steered", "dao_e"])
def test_outliers_do_not_stop_the_training(form: str) -> None:
    """Logistic regression from 0, whose parameters have to grow for a long time."""
    random = np.random.default_rng(0)
    inputs = jnp.asarray(random.normal(size=(512, 20)), jnp.float32)
    right = jax.nn.sigmoid(inputs @ jnp.asarray(3 * random.normal(size=20), jnp.float32))
    labels = jnp.asarray(right > random.random(512), jnp.float32)
    optimizer = optabs.dao_e(1e-3) if form == "dao_e" else optabs.steered(optabs.sgd(0.03))

    def loss(params: jax.Array, rows: Any) -> jax.Array:
        logits = inputs[rows] @ params
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    def end(scale: Any) -> float:
        def step(carry: Any, t: jax.Array) -> Any:
            params, state = carry
            rows = (jnp.arange(32) + 32 * t) % 512
            grads = jax.grad(loss)(params, rows) * scale(t)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros(20), optimizer.init(jnp.zeros(20))
        (params, _), _ = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(2000)))()
        return float(loss(params, slice(None)))

    without = end(lambda t: 1.0)
    assert without < 0.09
    for name, scale in OUTLIERS.items():
        assert end(scale) < 1.2 * without, name
