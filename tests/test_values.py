"""Every rule against a literal loop in float64, and against optax where they agree."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import optabs

STEPS = 40
LR = 0.03


def gradients(dtype: Any = np.float64) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    # Student-t, with exact zeros: the sparse and heavy-tailed case where ABS differs most.
    draws = random.standard_t(3, size=(STEPS, 5)) * (random.uniform(size=(STEPS, 5)) < 0.7)
    return list(draws.astype(dtype))


def walk(optimizer: optax.GradientTransformation, dtype: Any = np.float64) -> np.ndarray:
    def step(carry: Any, g: jax.Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(np.linspace(-1, 1, 5), dtype)
    grads = jnp.asarray(np.stack(gradients(dtype)))
    _, path = jax.jit(lambda c: jax.lax.scan(step, c, grads))((start, optimizer.init(start)))
    return np.asarray(path)


def expected(rule: Callable[..., list[np.ndarray]]) -> np.ndarray:
    return np.stack(rule(np.linspace(-1, 1, 5), gradients()))


def adam_of(**options: Any) -> Callable[..., list[np.ndarray]]:
    return functools.partial(reference.adam_family, lr=LR, **options)


Loop = Callable[..., list[np.ndarray]]
RULES: dict[str, tuple[optax.GradientTransformation, Loop]] = {
    "sgd": (optabs.sgd(LR), functools.partial(reference.sgd, lr=LR)),
    "momentum": (
        optabs.momentum(LR, 0.8),
        functools.partial(reference.momentum, lr=LR, rho=0.8),
    ),
    "adagrad": (optabs.adagrad(LR), functools.partial(reference.adagrad, lr=LR)),
    "adagrad, eps_root": (
        optabs.adagrad(LR, eps=0.0, eps_root=1e-2),
        functools.partial(reference.adagrad, lr=LR, eps=0.0, eps_root=1e-2),
    ),
    "adagrad_abs": (optabs.adagrad_abs(LR), functools.partial(reference.adagrad_abs, lr=LR)),
    "rmsprop": (optabs.rmsprop(LR), functools.partial(reference.rmsprop, lr=LR)),
    "rmsprop, all": (
        optabs.rmsprop(LR, 0.7, 1e-3, 1e-2, True),
        functools.partial(
            reference.rmsprop, lr=LR, rho=0.7, eps=1e-3, eps_root=1e-2, corrected=True
        ),
    ),
    "rmsprop_abs": (optabs.rmsprop_abs(LR), functools.partial(reference.rmsprop_abs, lr=LR)),
    "rmsprop_abs, all": (
        optabs.rmsprop_abs(LR, 0.7, 1e-3, True),
        functools.partial(reference.rmsprop_abs, lr=LR, rho=0.7, eps=1e-3, corrected=True),
    ),
    "adadelta": (optabs.adadelta(), reference.adadelta),
    "adadelta_abs": (
        optabs.adadelta_abs(eps=1e-3),
        functools.partial(reference.adadelta_abs, eps=1e-3),
    ),
    "adam": (optabs.adam(LR), adam_of()),
    "adam, all": (
        optabs.adam(LR, 0.8, 0.95, 1e-3, 1e-2),
        adam_of(b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-2),
    ),
    "adam, steady": (optabs.adam(LR, steady=True), adam_of(rising=True)),
    "adam, bounded": (optabs.adam(LR, max_ratio=0.5), adam_of(max_ratio=0.5)),
    "adamw": (optabs.adamw(LR, weight_decay=0.1), adam_of(weight_decay=0.1)),
    "nadam": (optabs.nadam(LR), adam_of(look_ahead=True)),
    "adam_abs": (optabs.adam_abs(LR), adam_of(sizes=True)),
    "adam_abs, steady": (
        optabs.adam_abs(LR, steady=True, max_ratio=1.0),
        adam_of(sizes=True, rising=True, max_ratio=1.0),
    ),
    "adamw_abs": (
        optabs.adamw_abs(LR, weight_decay=0.1),
        adam_of(sizes=True, weight_decay=0.1),
    ),
    "nadam_abs": (optabs.nadam_abs(LR), adam_of(sizes=True, look_ahead=True)),
    "AMSGrad in words": (
        optax.chain(
            optabs.scale_by_ratio(
                optabs.ema(0.9, bias_correction=True),
                optax.chain(optabs.rms(0.999, bias_correction=True), optabs.running_max()),
            ),
            optax.scale_by_learning_rate(LR),
        ),
        adam_of(running_max=True),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_equals_its_literal_loop(name: str) -> None:
    with jax.enable_x64(True):
        optimizer, rule = RULES[name]
        np.testing.assert_allclose(walk(optimizer), expected(rule), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_float32_stays_close_to_float64(name: str) -> None:
    optimizer, rule = RULES[name]
    path = walk(optimizer, np.float32)
    assert path.dtype == np.float32
    np.testing.assert_allclose(path, expected(rule), rtol=2e-5, atol=2e-5)


def test_the_literal_loops_tell_rules_apart() -> None:
    """The control: a comparison that any two rules passed would prove nothing."""
    paths = {name: expected(rule) for name, (_, rule) in RULES.items()}
    names = list(paths)
    for index, a in enumerate(names):
        for b in names[index + 1 :]:
            assert not np.allclose(paths[a], paths[b], rtol=1e-4), (a, b)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_momentum_has_the_closed_form_of_lemma_3_1(decay: float) -> None:
    """v after tau steps is the sum over t of rho^t (1 - rho) g of step tau - 1 - t."""
    grads = np.stack(gradients())
    with jax.enable_x64(True):
        path = walk(optabs.momentum(LR, decay))
    start = np.linspace(-1, 1, 5)
    velocities = (np.vstack([start, path[:-1]]) - path) / LR
    for tau in range(1, STEPS + 1):
        weights = (1 - decay) * decay ** np.arange(tau)
        closed = weights @ grads[tau - 1 :: -1]
        np.testing.assert_allclose(velocities[tau - 1], closed, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scheduled", [False, True])
def test_nag_is_algorithm_5_with_its_gradient_at_the_look_ahead(scheduled: bool) -> None:
    with jax.enable_x64(True):
        scale = np.array([1.0, 10.0, 0.1])

        def grad(theta: Any) -> Any:
            return scale * theta

        def rate(count: Any) -> Any:
            return 0.2 / (1.0 + 0.3 * count)

        rates = [float(rate(t)) if scheduled else 0.2 for t in range(STEPS)]
        start = np.array([1.0, -2.0, 3.0])
        wanted = reference.nag(start, grad, rates)
        optimizer = optabs.nag(rate if scheduled else 0.2)
        ahead = jnp.asarray(start)
        state = optimizer.init(ahead)
        for theta in wanted:
            updates, state = optimizer.update(grad(ahead), state, ahead)
            ahead = optax.apply_updates(ahead, updates)
            seen = optabs.nag_eval_params(state, ahead)
            np.testing.assert_allclose(seen, theta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optabs.sgd(LR), optax.sgd(LR)),
        (optabs.momentum(LR, 0.9), optax.sgd(LR * 0.1, momentum=0.9)),
        (optabs.adagrad(LR, eps=1e-7), optax.adagrad(LR, initial_accumulator_value=0.0)),
        (optabs.rmsprop(LR), optax.rmsprop(LR, eps_in_sqrt=False)),
        (optabs.rmsprop(LR, eps=0.0, eps_root=1e-8), optax.rmsprop(LR)),
        (
            optabs.rmsprop(LR, bias_correction=True),
            optax.rmsprop(LR, eps_in_sqrt=False, bias_correction=True),
        ),
        (optabs.adadelta(1.0), optax.adadelta(1.0)),
        (optabs.adam(LR), optax.adam(LR)),
        (optabs.adam(LR, eps_root=1e-3), optax.adam(LR, eps_root=1e-3)),
        (optabs.adamw(LR, weight_decay=0.1), optax.adamw(LR, weight_decay=0.1)),
    ],
    ids=lambda o: "",
)
def test_same_rule_as_optax(ours: Any, theirs: Any) -> None:
    with jax.enable_x64(True):
        np.testing.assert_allclose(walk(ours), walk(theirs), rtol=1e-6, atol=1e-9)


class TestWhereOptaxDiffers:
    """The differences that the docstrings state."""

    def test_nadam_divides_the_average_by_the_next_step(self) -> None:
        with jax.enable_x64(True):
            ours, theirs = walk(optabs.nadam(LR)), walk(optax.nadam(LR))
        assert not np.allclose(ours, theirs, rtol=1e-3)
        assert ours[0] == pytest.approx(expected(adam_of(look_ahead=True))[0])

    def test_momentum_has_no_complement_factor(self) -> None:
        with jax.enable_x64(True):
            ours, theirs = walk(optabs.momentum(LR)), walk(optax.sgd(LR, momentum=0.9))
        start = np.linspace(-1, 1, 5)
        np.testing.assert_allclose(10 * (ours - start), theirs - start, rtol=1e-6)

    def test_rmsprop_puts_eps_inside_the_root_by_default(self) -> None:
        with jax.enable_x64(True):
            ours = walk(optabs.rmsprop(LR, eps=1e-2))
            assert not np.allclose(ours, walk(optax.rmsprop(LR, eps=1e-2)), rtol=1e-3)

    def test_adagrad_starts_at_a_tenth_with_another_eps(self) -> None:
        with jax.enable_x64(True):
            ours, theirs = walk(optabs.adagrad(LR)), walk(optax.adagrad(LR))
            assert not np.allclose(ours, theirs, rtol=1e-3)

    def test_nesterov_of_optax_trains_the_same_look_ahead_at_a_constant_rate(self) -> None:
        with jax.enable_x64(True):
            ours = walk(optabs.nag(LR))
            theirs = walk(optax.sgd(LR * 0.1, momentum=0.9, nesterov=True))
            # At a constant rate both train the look-ahead point by the same updates.
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)

    def test_nesterov_of_optax_drifts_under_a_schedule(self) -> None:
        with jax.enable_x64(True):
            ours = walk(optabs.nag(lambda t: LR / (1 + t)))
            theirs = walk(optax.sgd(lambda t: 0.1 * LR / (1 + t), momentum=0.9, nesterov=True))
            assert not np.allclose(ours, theirs, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.25, 0.5, 0.999])
def test_bias_correction_has_its_slope_by_the_decay(decay: float) -> None:
    """Of gradients 1 and 0 the corrected mean size is b (1 - b) / (1 - b**2)."""

    def size(decay: jax.Array) -> jax.Array:
        mean = optabs.mean_abs(decay, bias_correction=True)
        _, state = mean.update(jnp.ones([]), mean.init(jnp.zeros([])))
        return mean.update(jnp.zeros([]), state)[0]

    slope = 1 / (1 + decay) ** 2
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(size)(jnp.float32(decay)), slope, rtol=1e-3)
