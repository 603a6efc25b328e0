"""What does not go together is refused in one sentence, never long."""

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import NAMED, OPTIONS, Case
from sentences import REMEDIES, assert_sentence
from trees import gradients, params

import optabs
from optabs._checks import cut, short

DATA = np.ones((4, 1), np.float32)


def squared(params: jax.Array, batch: jax.Array) -> jax.Array:
    return jnp.sum((params - batch.mean()) ** 2)


def init_fn(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (3,))


def refusal(function: Callable[[], Any]) -> str:
    """The one sentence of a ValueError."""
    with pytest.raises(ValueError, match=r"; (pass|rename)") as raised:
        function()
    message = str(raised.value)
    assert_sentence(message, REMEDIES)
    return message


TAKERS: dict[str, Callable[[Any], Any]] = {
    "optimizer": lambda given: optabs.fit(squared, jnp.zeros(3), given, DATA),
    "unit": optabs.gadam,
    "transformation": optabs.full_precision,
    "transformation of units": optabs.vmapped,
    "numerator": lambda given: optabs.scale_by_ratio(given, optabs.rms(0.9)),
    "denominator": lambda given: optabs.scale_by_ratio(optabs.ema(0.9), given),
}


@pytest.mark.parametrize("taker", TAKERS)
class TestInPlaceOfATransformation:
    @pytest.mark.parametrize("given", [optabs.adam, optax.adam])
    def test_a_function(self, taker: str, given: Any) -> None:
        name = taker.split()[0]
        assert refusal(lambda: TAKERS[taker](given)) == (
            f"{name} is the function adam; pass what it returns, such as adam(1e-3)."
        )

    @pytest.mark.parametrize(
        "given",
        [
            optax.MultiSteps,
            lambda rate: optabs.adam(rate),
            functools.partial(optabs.adam, b1=0.5),
            0.1,
            np.zeros((1000, 1000)),
            {f"layer {number}": jnp.zeros(3) for number in range(1000)},
            "adam " * 1000,
        ],
        ids=lambda given: type(given).__name__,
    )
    def test_anything_else(self, taker: str, given: Any) -> None:
        assert refusal(lambda: TAKERS[taker](given)).startswith(f"{taker.split()[0]} is ")


def test_a_function_in_place_of_a_decay() -> None:
    assert refusal(lambda: optabs.unit_correction(optabs.rms)).startswith("decay is <function")


@pytest.mark.parametrize("make", [optabs.sgd, optabs.adam, lambda n: optabs.adam(0.1, eps=n)])
def test_a_number_that_float32_does_not_hold(make: Callable[[float], Any]) -> None:
    assert "is 1e+39, more than float32 holds; pass" in refusal(lambda: make(1e39))
    make(3.4e38)


@pytest.mark.parametrize("case", [*NAMED, *OPTIONS], ids=str)
class TestAnotherTree:
    def update(self, case: Case, grads: Any) -> Any:
        optimizer, position = case.make(), params()
        return lambda: optimizer.update(grads, optimizer.init(position), position)

    def test_of_other_names_or_shapes(self, case: Case) -> None:
        if not case.moments:
            pytest.skip("keeps nothing to compare with")
        grads = gradients(1)[0]
        many = {f"layer {number}": jnp.zeros(3) for number in range(1000)}
        for other in (many, {"layer": grads["layer"]}, jnp.zeros(3)):
            assert "another tree than" in refusal(self.update(case, other))
        for scale in (jnp.zeros(2), jnp.zeros((1, 1))):
            message = refusal(self.update(case, grads | {"scale": scale}))
            assert "updates['scale'] have shape" in message

    def test_in_a_trace_too(self, case: Case) -> None:
        if case.moments:
            with pytest.raises(ValueError, match="another tree"):
                jax.eval_shape(self.update(case, {"other": jnp.zeros(3)}))


ROWS = {case.name: case for case in NAMED}
# Optimizers of one structure, whose states are of one kind.
ALIKE = [
    {"adam", "adamw", "nadam", "adam_abs", "adamw_abs", "nadam_abs"},
    {"adagrad", "rmsprop", "adagrad_abs", "rmsprop_abs"},
    {"adadelta", "adadelta_abs"},
]


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.permutations(ROWS, 2)))
def test_the_state_of_another_optimizer(ours: str, theirs: str) -> None:
    optimizer, state = ROWS[ours].make(), ROWS[theirs].make().init(params())
    if any({ours, theirs} <= kind for kind in ALIKE) and len(state) == len(
        optimizer.init(params())
    ):
        return
    message = refusal(lambda: optimizer.update(gradients(1)[0], state, params()))
    assert message.startswith("state ")


@pytest.mark.parametrize(
    "state",
    [None, (), optax.adam(0.1).init(params()), optabs.adam(lambda count: 0.1).init(params())],
    ids=["None", "nothing", "optax", "schedule"],
)
def test_no_state_of_ours(state: Any) -> None:
    optimizer = optabs.adam(0.1)
    message = refusal(lambda: optimizer.update(gradients(1)[0], state, params()))
    assert message.startswith("state ")


class TestMissingData:
    def test_of_gadam(self) -> None:
        learner = optabs.gadam(population_size=2)
        key = jax.random.key(0)
        state = learner.init(key, init_fn)
        for call, name in (
            (lambda: learner.run(key, init_fn, squared, DATA, None), "validation_data"),
            (lambda: learner.run(key, init_fn, squared, None, DATA), "train_data"),
            (lambda: learner.evolve(state, squared, DATA), "validation_data"),
            (lambda: learner.learn(state, squared), "data"),
        ):
            assert refusal(call).startswith(f"{name} is None, and loss_fn fails on it")

    def test_a_fault_of_the_loss_stays_what_it_is(self) -> None:
        def faulty(params: Any, batch: Any) -> Any:
            return params.no_such_attribute

        learner = optabs.gadam(population_size=2)
        with pytest.raises(AttributeError):
            learner.run(jax.random.key(0), init_fn, faulty, DATA, DATA)

    def test_of_fit(self) -> None:
        metrics = {f"metric {number}": squared for number in range(1000)}
        message = refusal(
            lambda: optabs.fit(squared, jnp.zeros(3), optabs.sgd(0.1), DATA, metrics=metrics)
        )
        assert "validation_data is None" in message


@pytest.mark.slow
def test_the_bar_shows_the_best_finite_loss(capsys: pytest.CaptureFixture[str]) -> None:
    """Of units the first of which is NaN for ever."""

    def start(key: jax.Array) -> jax.Array:
        return jnp.ones(3)

    def loss(params: jax.Array, batch: Any) -> jax.Array:
        return jnp.where(params[0] > 0.5, jnp.sum(params**2), jnp.nan)

    learner = optabs.gadam(optabs.sgd(0.0), population_size=4, mutation_rate=1.0)
    learner.run(jax.random.key(0), start, loss, None, None, generations=2, progress=True)
    assert re.search(r"best loss \d", capsys.readouterr().err)
    learner.run(
        jax.random.key(0), start, lambda p, b: jnp.nan * p[0], None, None, progress=True
    )
    shown = capsys.readouterr().err
    assert "no finite loss" in shown
    assert "nan" not in shown


@pytest.mark.parametrize(
    "value",
    [
        np.arange(10**6),
        jnp.zeros((1000, 1000)),
        ["a" * 1000] * 1000,
        {number: np.zeros(100) for number in range(1000)},
        jax.tree.structure({f"layer {number}": number for number in range(1000)}),
        lambda: None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_makes_a_long_message(value: Any) -> None:
    for text in (short(value), cut(str(value))):
        assert len(text) <= 80
        assert "\n" not in text


@pytest.mark.parametrize(
    "call",
    [
        lambda long: optabs.fit(squared, jnp.zeros(3), optabs.sgd(0.1), DATA, key=long),
        lambda long: optabs.fit(squared, jnp.zeros(3), optabs.sgd(0.1), DATA, sampling=long),
        lambda long: optabs.fit(squared, jnp.zeros(3), optabs.sgd(0.1), DATA, epochs=long),
        lambda long: optabs.gadam(inheritance=long),
        lambda long: optabs.gadam(mesh=long),
        lambda long: optabs.gadam(sample=long),
        lambda long: optabs.genetics.either(long),
        lambda long: optabs.adam(long),
        lambda long: optabs.vmapped(optabs.adam(0.1)).init(
            {f"layer {number}": np.zeros(1 + number, "f4") for number in range(1000)}
        ),
        lambda long: optabs.fit(
            squared, jnp.zeros(3), optabs.sgd(0.1), [np.zeros(1 + n) for n in range(100)]
        ),
    ],
)
def test_long_arguments(call: Callable[[Any], Any]) -> None:
    refusal(lambda: call("long " * 1000))


def test_a_rate_does_not_read_the_parameters() -> None:
    """They may be in another container, such as flax's frozen dicts."""
    grads = {"w": jnp.ones(3)}
    for make in (optabs.sgd, optabs.adam, optabs.adam_abs):
        optimizer = make(0.1)
        wanted, _ = optimizer.update(grads, optimizer.init(grads), grads)
        for other in (flax.core.freeze(grads), {"w": jnp.ones(3), "more": jnp.ones(2)}):
            updates, _ = optimizer.update(grads, optimizer.init(grads), other)
            np.testing.assert_array_equal(updates["w"], wanted["w"])


@pytest.mark.parametrize("make", [optabs.sgd, optabs.dao_e, optabs.adam_abs])
@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (jnp.ones(3), "an array float32[3]"),
        (np.ones(3), "an array float64[3]"),
        (jnp.array(1j), "Array(0.+1.j, dtype=complex64, weak_type=True)"),
        (1j, "1j, a complex"),
    ],
)
def test_a_rate_that_is_not_one_real_number(make: Any, rate: Any, shown: str) -> None:
    wanted = "pass a finite number that is 0 or more, or a schedule (step -> rate)."
    assert refusal(lambda: make(rate)) == f"learning_rate is {shown}; {wanted}"


@pytest.mark.parametrize(
    ("leaf", "shown"),
    [("relu", "'relu'"), (jnp.tanh, "<"), (jax.random.key(0), "Array(")],
)
@pytest.mark.parametrize("make", [optabs.sgd, optabs.dao_e, optabs.adam_abs])
def test_a_leaf_without_numbers(make: Any, leaf: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=r"optax\.masked") as raised:
        make(0.1).init({"a": leaf, "w": jnp.ones(2)})
    message = str(raised.value)
    assert message.startswith(f"a leaf of the parameters or gradients is {shown}")
    assert_sentence(message, "keep")


@pytest.mark.parametrize("make", [optabs.sgd, optabs.dao_e, optabs.adam_abs])
def test_gradients_of_whole_numbers(make: Any) -> None:
    params = {"i": jnp.arange(3), "w": jnp.ones(2)}
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    optimizer = make(0.1)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"is an array float0\[3\], .*optax.masked"):
        optimizer.update(grads, state, params)
    masked = optax.masked(optimizer, {"i": False, "w": True})
    updates, _ = masked.update(grads, masked.init(params), params)
    assert updates["w"].shape == (2,)
