"""What Gadam cannot use is refused in one sentence that says what to pass."""

import contextlib
from collections.abc import Iterator
from typing import Any

import gadam_problem as networks
import gadam_quadratic as quadratic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gadam_problem import data

import optabs

KEY = jax.random.key(0)
MESH = jax.make_mesh((4,), ("population",), devices=jax.devices()[:4])


@contextlib.contextmanager
def refuses(sentence: str) -> Iterator[None]:
    """One sentence that begins so, in a ValueError; a note of jax's may follow it."""
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        yield
    message = str(refusal.value)
    assert message.startswith(sentence)
    assert message.endswith(".")
    assert ". " not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"unit": 0.1}, "unit is 0.1; pass a gradient transformation, such as optabs.adam"),
        ({"population_size": 0}, "population_size is 0; pass a whole number from 1 to 2**31"),
        ({"population_size": 2.0}, "population_size is 2.0, a float; pass a whole number fro"),
        ({"mutation_rate": -0.1}, "mutation_rate is -0.1; pass a number in [0, 1]"),
        ({"mutation_rate": 1.1}, "mutation_rate is 1.1; pass a number in [0, 1]"),
        ({"mutation_rate": np.nan}, "mutation_rate is nan; pass a number in [0, 1]"),
        ({"mutation_rate": "1"}, "mutation_rate is '1', a str; pass a number in [0, 1]"),
        ({"pressure": -1}, "pressure is -1; pass a finite number that is 0 or more"),
        ({"epochs": 0}, "epochs is 0; pass a whole number from 1 to 2**31 - 1"),
        ({"batch_size": 0}, "batch_size is 0; pass a whole number from 1 to 2**31 - 1"),
        ({"validation_batch_size": -1}, "validation_batch_size is -1; pass a whole number"),
        ({"chunk_size": 0}, "chunk_size is 0; pass a whole number from 1 to 2**31 - 1"),
        ({"sample": 1.0}, "sample is 1.0; pass a function (key, params) -> a tree like para"),
        ({"inheritance": "both"}, "inheritance is 'both'; pass 'crossover' or 'fresh'"),
        ({"stateful": 1}, "stateful is 1; pass True or False"),
        ({"mesh": "all"}, "mesh is 'all'; pass a jax.sharding.Mesh, such as jax.make_mesh(("),
        ({"mesh": MESH, "axis": "units"}, "axis is 'units', but the mesh has ['population']"),
        (
            {"mesh": MESH, "population_size": 6},
            "population_size is 6, which 4 devices cannot share evenly; pass a multiple of 4",
        ),
    ],
)
def test_of_gadam(given: dict[str, Any], sentence: str) -> None:
    with refuses(sentence):
        optabs.gadam(**given)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, *given: Any) -> jax.Array:
        return quadratic.loss_fn(*given)


def whole_numbers(key: jax.Array) -> Any:
    return quadratic.init_fn(key) | {"n": jnp.arange(3)}


@pytest.mark.parametrize(
    ("init_fn", "sentence"),
    [
        (3, "init_fn is 3; pass a function key -> params"),
        (Unhashable(), "init_fn is a Unhashable, which cannot be hashed, so that its program"),
        (lambda key: {}, "init_fn returns no arrays; return a pytree of parameters"),
        (whole_numbers, "init_fn's params['n'] is int32, which has no gradient; pass floati"),
    ],
)
def test_of_init(init_fn: Any, sentence: str) -> None:
    with refuses(sentence):
        quadratic.learner().init(KEY, init_fn)


@pytest.mark.parametrize(
    "size_of",
    [
        lambda key: int(jax.random.randint(key, (), 1, 5)),
        lambda key: jax.random.randint(key, (), 1, 5),
        lambda key: len(range(jax.random.randint(key, (), 1, 5))),
        lambda key: np.asarray(jax.random.randint(key, (), 1, 5)),
        lambda key: 2 if jax.random.bernoulli(key) else 3,
    ],
    ids=["int", "shape", "range", "numpy", "if"],
)
def test_shapes_that_depend_on_the_key(size_of: Any) -> None:
    with refuses("init_fn looks at the value of its key, so that its shapes may depend on it"):
        quadratic.learner().init(KEY, lambda key: jnp.ones(size_of(key)))


def test_other_type_errors_of_an_init_fn_are_its_own() -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        quadratic.learner().init(KEY, lambda key: jnp.ones(3, nonsense=1))


def test_a_state_of_another_kind() -> None:
    learner = quadratic.learner()
    state = learner.init(KEY, quadratic.init_fn)
    with refuses("state.params holds 4 units, but population_size is 5; pass a state of this"):
        quadratic.learner(population_size=5).learn(state, quadratic.loss_fn)
    with refuses("state is a dict; pass a GadamState, such as init returns"):
        learner.learn(state.params, quadratic.loss_fn)
    uneven = state._replace(params={"w": jnp.ones((4, 3)), "b": jnp.ones((3, 2))})
    for call in (learner.learn, learner.evolve):
        with refuses("state.params has ['b'] [3, 2], ['w'] [4, 3]; pass arrays whose leading"):
            call(uneven, quadratic.loss_fn)
    counts = state._replace(params=jax.tree.map(lambda leaf: leaf.astype(int), state.params))
    with refuses("state.params['b'] is int32, which has no gradient; pass floating-point arr"):
        learner.evolve(counts, quadratic.loss_fn)


@pytest.mark.parametrize(
    ("loss_fn", "sentence"),
    [
        (None, "loss_fn is None; pass a function (params, batch) -> a number"),
        (Unhashable(), "loss_fn is a Unhashable, which cannot be hashed, so that its program"),
        (lambda params, batch: params["b"], "loss_fn returns float32[2]; return one floating"),
        (lambda params, batch: 3, "loss_fn returns int32[]; return one floating-point number"),
        (
            lambda params, batch: (jnp.sum(params["b"]), ()),
            "loss_fn returns a tuple; return one number, or with stateful=True the pair (loss",
        ),
    ],
)
def test_of_losses(loss_fn: Any, sentence: str) -> None:
    learner = quadratic.learner()
    state = learner.init(KEY, quadratic.init_fn)
    for call in (
        lambda: learner.learn(state, loss_fn),
        lambda: learner.evolve(state, loss_fn),
        lambda: learner.run(KEY, quadratic.init_fn, loss_fn, None, None),
    ):
        with refuses(sentence):
            call()
    if loss_fn is not None:
        fitness = sentence.replace("loss_fn", "fitness_fn")
        with refuses(fitness):
            learner.evolve(state, quadratic.loss_fn, fitness_fn=loss_fn)
        with refuses(fitness):
            learner.run(
                KEY, quadratic.init_fn, quadratic.loss_fn, None, None, fitness_fn=loss_fn
            )


def test_of_stateful_functions() -> None:
    learner = quadratic.learner(stateful=True)
    with refuses("init_fn returns a dict; with stateful=True return the pair (params, model"):
        learner.init(KEY, quadratic.init_fn)
    state = learner.init(KEY, lambda key: (quadratic.init_fn(key), jnp.zeros(1)))
    with refuses("loss_fn returns an array; with stateful=True return the pair (loss, model"):
        learner.learn(state, lambda params, kept, batch: quadratic.loss_fn(params, batch))


@pytest.mark.parametrize(
    ("learns", "given", "sentence"),
    [
        ({"batch_size": 25}, {}, "batch_size is 25; pass None for the whole set, or a whole"),
        ({"validation_batch_size": 17}, {}, "validation_batch_size is 17; pass None for the"),
        (
            {},
            {"train_data": None},
            "batch_size is 8 but train_data is None; pass data to draw",
        ),
        ({}, {"validation_data": None}, "validation_batch_size is 12 but validation_data is"),
        ({}, {"train_data": ()}, "train_data has no arrays; pass a pytree of arrays, such as"),
        ({}, {"generations": 0}, "generations is 0; pass a whole number from 1 to 2**31 - 1"),
        ({}, {"tolerance": -1}, "tolerance is -1; pass a finite number that is 0 or more"),
        ({}, {"key": 3}, "key is 3; pass one jax.random.key(seed), or None for seed 0"),
        ({}, {"checkpoint_dir": ""}, "checkpoint_dir is ''; pass the path of a folder"),
    ],
)
def test_of_run(learns: dict[str, Any], given: dict[str, Any], sentence: str) -> None:
    with refuses(sentence):
        networks.run(learns=learns, **given)


def test_batches_that_steps_cannot_draw() -> None:
    learner = networks.learner()
    state = learner.init(KEY, networks.init_fn)
    with refuses("batch_size is 8 but data is None; pass data to draw from"):
        learner.learn(state, networks.loss_fn)
    with refuses("batch_size is 8; pass None for the whole set, or a whole number from 1 to"):
        learner.evolve(state, networks.loss_fn, data(5), data())


def scores(params: Any, batch: Any) -> jax.Array:
    inputs, labels = batch
    logits = inputs @ params["w"]
    return optabs.losses.softmax_cross_entropy(logits, labels).mean()


def stateful_scores(params: Any, kept: Any, batch: Any) -> Any:
    return scores(params, batch), kept


@pytest.mark.parametrize(
    ("where", "spread", "stateful"),
    [
        ("train_data", False, True),
        ("validation_data", True, False),
        pytest.param("validation_data", True, True, marks=pytest.mark.slow),
        pytest.param("train_data", True, False, marks=pytest.mark.slow),
    ],
)
def test_labels_out_of_range(where: str, spread: bool, stateful: bool) -> None:
    good = data()[0], np.arange(networks.COUNT) % 8
    bad = good[0], np.where(good[1] == 3, 8, good[1])

    def start(key: jax.Array) -> Any:
        params = {"w": jax.random.normal(key, (networks.INPUTS, 8))}
        return (params, jnp.zeros(1)) if stateful else params

    learner = quadratic.learner(
        batch_size=10, stateful=stateful, mesh=MESH if spread else None
    )
    loss_fn = stateful_scores if stateful else scores
    named = {"train_data": good, "validation_data": good} | {where: bad}
    with refuses("targets hold 8; pass class indices from 0 to 7"):
        learner.run(KEY, start, loss_fn, **named)


@pytest.mark.slow
def test_labels_in_range_are_no_matter() -> None:
    good = data()[0], np.arange(networks.COUNT) % 8
    result = quadratic.learner(batch_size=10).run(
        KEY,
        lambda key: {"w": jax.random.normal(key, (networks.INPUTS, 8))},
        scores,
        good,
        good,
        generations=1,
    )
    assert np.all(np.isfinite(result.history["trial_losses"]))


def test_of_vmapped() -> None:
    stacked = optabs.vmapped(optax.sgd(0.1))
    with refuses(
        "params has ['b'] [3, 2], ['w'] [4]; pass arrays whose leading axes have one"
    ):
        stacked.init({"w": jnp.ones(4), "b": jnp.ones((3, 2))})
    with refuses("params has array []; pass arrays whose leading axes have one length, that"):
        stacked.init(1.0)
    with refuses("params has no arrays; pass arrays with a leading axis of units"):
        stacked.init({})
