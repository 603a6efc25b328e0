"""DAO-E refuses what it cannot use in one sentence, when it is built or first traced."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sentences import assert_sentence
from trees import assert_equal, params

import optabs
from optabs import Controller, features


def first(observation: features.Observation) -> jax.Array:
    return jnp.zeros(1)


@dataclasses.dataclass
class Descent:
    """An optimizer of another library."""

    rate: float


BUILT = {"sgd": optabs.sgd(0.1)}
CONSTRUCTION: list[tuple[dict[str, Any], str]] = [
    # experts
    ({"experts": {}}, "experts is {}; pass a mapping of names to optax transformations"),
    ({"experts": [optabs.sgd(0.1)]}, "pass a mapping of names to optax transformations"),
    ({"experts": optabs.sgd(0.1)}, "pass a mapping of names to optax transformations"),
    ({"experts": [optabs.sgd(0.1)] * 9}, "experts is [GradientTransformationExtraArgs("),
    ({"experts": (optabs.sgd, optabs.adam)}, "experts is (<function sgd"),
    ({"experts": optabs.adam}, "experts is <function adam"),
    ({"experts": {"b": Descent}}, "experts: 'b' made Descent(rate=0.001); pass a mapping"),
    ({"experts": {"b": Descent(0.1)}}, "experts holds 'b': Descent(rate=0.1); pass a map"),
    (
        {"experts": {"b": lambda rate, decay: optabs.momentum(rate, decay)}},
        "which does not take a learning_rate alone; pass a mapping of names",
    ),
    ({"experts": {"sgd": 0.1}}, "experts holds 'sgd': 0.1; pass a mapping of names"),
    ({"experts": {1: optabs.sgd(0.1)}}, "experts holds 1: "),
    (
        {"experts": {"half": lambda rate: rate}},
        "experts: 'half' made 0.001; pass a mapping of names to optax transformations",
    ),
    (
        {"learning_rate": 0.1, "experts": BUILT},
        "learning_rate is 0.1, but expert 'sgd' is a transformation with a rate of its own; "
        "pass experts as functions (learning_rate -> transformation), or no learning_rate.",
    ),
    (
        {"learning_rate": 0.1, "experts": {"adam": optabs.adam, **BUILT}},
        "but expert 'sgd' is a transformation with a rate of its own",
    ),
    ({"learning_rate": -0.1}, "learning_rate is -0.1; pass a finite number that is 0 or more"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast', a str; pass a finite number"),
    (
        {"learning_rate": np.nan, "experts": {"adam": optabs.adam}},
        "learning_rate is nan; pass a finite number",
    ),
    # features
    (
        {"features": None},
        "features is None; pass a sequence of pairs, ((function, length), ...)",
    ),
    ({"features": first}, "features is <function first"),
    ({"features": (first, 1)}, "features holds <function first"),
    ({"features": (first,)}, "features holds <function first"),
    (
        {"features": (("mean", 1),)},
        "features holds ('mean', 1); pass a sequence of pairs",
    ),
    ({"features": ((first, 0),)}, "whole lengths of 1 or more"),
    ({"features": ((first, 1.0),)}, "whole lengths of 1 or more"),
    ({"features": ((first, True),)}, "whole lengths of 1 or more"),
    # storage
    (
        {"previous": "float16"},
        "previous is 'float16'; pass one of 'thinned', 'bfloat16', 'float32'.",
    ),
    ({"previous": jnp.bfloat16}, "pass one of 'thinned', 'bfloat16', 'float32'."),
    (
        {"previous": "int8"},
        "previous is 'int8', which is gone: a step adds less to a trace than half a step of "
        "int8; pass one of 'thinned', 'bfloat16', 'float32'.",
    ),
    *(
        ({"learning_rate": bad}, "as experts={name: optimizer}.")
        for bad in (BUILT, [1e-3, 1e-2], optax.adam(1e-3), {"adam": 1e-3})
    ),
    # the controller and its settings
    ({"controller": None}, "controller is None; pass an optabs.Controller(...)."),
    ({"controller": Controller.paper}, "pass an optabs.Controller(...)."),
    ({"controller": Controller(gamma=1.0)}, "gamma is 1.0; pass a number in [0, 1)."),
    ({"controller": Controller(gamma=-0.1)}, "gamma is -0.1; pass a number in [0, 1)."),
    ({"controller": Controller(gamma=np.nan)}, "gamma is nan; pass a number in [0, 1)."),
    (
        {"controller": Controller(gamma=0.99999999)},
        "gamma is 0.99999999, which is 1 in float32; pass a smaller one.",
    ),
    ({"controller": Controller(gamma=None)}, "gamma is None, a NoneType; pass a number in"),
    ({"controller": Controller(gamma=jnp.bfloat16(0.99))}, "gamma came as bfloat16, too coar"),
    ({"controller": Controller(cap=0.0)}, "cap is 0.0; pass a finite number above 0."),
    ({"controller": Controller(cap=np.inf)}, "cap is inf; pass a finite number above 0."),
    ({"controller": Controller(floor=-0.1)}, "floor is -0.1; pass a number in [0, 1)."),
    (
        {"controller": Controller(rate=1e39)},
        "rate is 1e+39, more than float32 holds; pass a finite number that is 0 or more.",
    ),
    (
        {"controller": Controller(floor=0.25)},
        "floor is 0.25 for 4 experts; pass a number below 1/4.",
    ),
    (
        {
            "controller": Controller(floor=np.float32(0.5)),
            "experts": BUILT | {"b": BUILT["sgd"]},
        },
        "for 2 experts; pass a number below 1/2.",
    ),
    ({"controller": Controller(rate=-1.0)}, "rate is -1.0; pass a finite number that is 0 or"),
    ({"controller": Controller(rate=lambda t: 0.1)}, "rate is <function"),
    ({"controller": Controller(decay=1.0)}, "decay is 1.0; pass a number in [0, 1)."),
    ({"controller": Controller(multiplier_rate=np.nan)}, "multiplier_rate is nan; pass a fin"),
]


@pytest.mark.parametrize(("arguments", "sentence"), CONSTRUCTION)
def test_at_construction(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        optabs.dao_e(**arguments)
    assert_sentence(str(error.value))


def test_settings_at_their_limits_are_taken() -> None:
    for controller in (
        Controller(0.05, 0.0, 0.0, 0.0, 0.0, 0.0),
        Controller(floor=0.2499, cap=1e-9),
        Controller(floor=jnp.float32(2.0)),  # an array may be traced, so it is not read
    ):
        optabs.dao_e(controller=controller)


def stateless(function: Callable[[Any], Any]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: function(updates))


def returning(value: Any) -> Any:
    def numbers(observation: features.Observation) -> Any:
        return value

    return numbers


POSITION = dict.fromkeys(("one", "other"), params()["layer"]["b"])
TRACE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no parameters": (
        {},
        {"params": None},
        "params is None; pass update the parameters as its third argument.",
    ),
    "losses": (
        {},
        {"value": jnp.ones(3)},
        "value is float32[3]; pass the loss as one real number, such as its mean over the",
    ),
    "a loss in a list": ({}, {"value": [1.0]}, "value is float32[1]; pass the loss as one"),
    "a loss in words": ({}, {"value": "low"}, "value is 'low'; pass the loss as one real"),
    "a complex loss": ({}, {"value": 1j}, "value is complex64[]; pass the loss as one real"),
    "no array in a batch": (
        {},
        {"batch": {}},
        "batch is {}, without any array of numbers; pass the mini-batch as a pytree of "
        "arrays, or no batch.",
    ),
    "a batch of text": ({}, {"batch": ["train"]}, "batch is ['train'], without any array"),
    "a batch of keys": (
        {},
        {"batch": jax.random.key(0)},
        "without any array of numbers; pass the mini-batch as a pytree of arrays",
    ),
    "a longer feature": (
        {"features": ((returning(jnp.ones(3)), 2),)},
        {},
        "features: numbers returned float32[3]; return 2 real numbers, the length it was",
    ),
    "a number for two": (
        {"features": ((returning(1.0), 2),)},
        {},
        "features: numbers returned float32[1]; return 2 real numbers",
    ),
    "a matrix": (
        {"features": ((returning(jnp.ones((1, 2))), 2),)},
        {},
        "features: numbers returned float32[1, 2]; return 2 real numbers",
    ),
    "a complex feature": (
        {"features": ((returning(jnp.ones(1) * 1j), 1),)},
        {},
        "features: numbers returned complex64[1]; return 1 real number,",
    ),
    "another structure": (
        {"experts": {"list": stateless(jax.tree.leaves)}},
        {},
        "experts: 'list' turned PyTreeDef",
    ),
    "another dtype": (
        {
            "experts": {
                "half": stateless(
                    lambda tree: jax.tree.map(lambda x: x.astype(jnp.float16), tree)
                )
            }
        },
        {},
        "experts: 'half' turned float32[2] into float16[2]; an expert's updates must have the",
    ),
    "another shape": (
        {
            "experts": {
                **BUILT,
                "row": stateless(lambda tree: jax.tree.map(lambda x: x[None], tree)),
            }
        },
        {},
        "experts: 'row' turned float32[2] into float32[1, 2]; an expert's updates must have",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", TRACE)
def test_at_the_first_trace(name: str, compiled: bool) -> None:
    settings, given, sentence = TRACE[name]
    optimizer = optabs.dao_e(**{"experts": BUILT | {"b": BUILT["sgd"]}, **settings})
    state = optimizer.init(POSITION)
    before = jax.tree.map(np.asarray, state)
    call = {"params": POSITION, **given}

    def update(grads: Any, state: Any) -> Any:
        return optimizer.update(grads, state, **call)

    # The state is given away only to a program that exists.
    run = jax.jit(update, donate_argnums=1) if compiled else update
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        run(POSITION, state)
    assert_sentence(str(error.value))
    assert_equal(state, before)


MANY = {f"layer_number_{index}": jnp.ones(2) for index in range(60)}
LONG = {f"layer {number}": np.ones(9) for number in range(500)}


@pytest.mark.parametrize(
    "arguments",
    [
        {"controller": LONG},
        {"controller": jnp.ones((40, 40))},
        {"controller": Controller.paper},
        {"controller": Controller(rate=jnp.ones(4))},
        {"controller": Controller(cap=np.ones(4))},
        {"features": LONG},
        {"features": (LONG,)},
        {"previous": "x" * 1000},
        {"previous": np.ones(9)},
    ],
)
def test_long_and_strange_arguments_make_one_sentence(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"; pass (an|one|a) ") as error:
        optabs.dao_e(**arguments)
    assert_sentence(str(error.value))


@pytest.mark.slow
def test_a_large_tree_is_shown_where_it_changed() -> None:
    listing = stateless(lambda tree: {**tree, "layer_number_31": {"w": jnp.ones(2)}})
    optimizer = optabs.dao_e(experts={"more": listing})
    with pytest.raises(ValueError, match=r"experts: 'more' turned PyTreeDef\(\.\.\.") as error:
        optimizer.update(MANY, optimizer.init(MANY), MANY)
    assert "'layer_number_31': {'w'" in str(error.value)
    assert_sentence(str(error.value))


def test_what_an_expert_needs_of_update_is_named() -> None:
    optimizer = optabs.dao_e(experts={"polyak": optax.polyak_sgd(), "adam": optax.adam(0.1)})
    params = jnp.ones(3)
    state = optimizer.init(params)
    wanted = "experts: 'polyak' needs 'value'; pass it to update by name, such as value=loss."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        optimizer.update(params, state, params)
    updates, _ = optimizer.update(params, state, params, value=jnp.float32(1.0))
    assert bool(jnp.all(updates < 0))


def test_a_fault_of_an_experts_own_comes_as_it_is() -> None:
    """And is not taken for an argument that update lacks."""

    def faulty(updates: Any, state: Any, params: Any = None) -> Any:
        return jnp.dot(updates, jnp.ones(4)), state

    own = optax.GradientTransformation(lambda _: (), faulty)
    params = jnp.ones(3)
    for arguments, message in (
        ({"experts": {"own": own}}, "dot_general"),
        ({"learning_rate": lambda: 1e-3}, "takes 0 positional arguments"),
        ({"learning_rate": optax.cosine_decay_schedule}, "'decay_steps'"),
    ):
        optimizer = optabs.dao_e(**arguments)
        with pytest.raises(TypeError, match=message):
            optimizer.update(params, optimizer.init(params), params)


def test_a_traced_loss_of_the_wrong_shape_is_named_by_its_shape() -> None:
    optimizer = optabs.dao_e(experts=BUILT)
    update = jax.jit(
        lambda losses: optimizer.update(
            POSITION, optimizer.init(POSITION), POSITION, value=losses
        )
    )
    with pytest.raises(ValueError, match=re.escape("value is float32[3]; pass the loss")):
        update(jnp.ones(3))


def test_a_feature_that_changes_its_length_later_is_refused_then() -> None:
    optimizer = optabs.dao_e(features=((lambda seen: seen.batch, 2),))
    update = jax.jit(optimizer.update)
    state = optimizer.init(POSITION)
    _, state = update(POSITION, state, POSITION, batch=jnp.ones(2))
    with pytest.raises(ValueError, match=re.escape("returned float32[5]; return 2 real num")):
        update(POSITION, state, POSITION, batch=jnp.ones(5))


class TestMixingWeights:
    def test_states_without_exactly_one_mixture(self) -> None:
        mixed = optabs.dao_e(experts=BUILT)
        for optimizer, count in ((optabs.adam(0.1), 0), (optax.chain(mixed, mixed), 2)):
            sentence = f"state holds {count} DaoEState; pass mixing_weights the state of one"
            with pytest.raises(ValueError, match=sentence) as error:
                optabs.mixing_weights(optimizer.init(POSITION))
            assert_sentence(str(error.value))

    @pytest.mark.parametrize("controller", [Controller.paper(), Controller.uniform()])
    def test_per_leaf_where_there_is_nothing_per_leaf(self, controller: Controller) -> None:
        state = optabs.dao_e(controller=controller).init(POSITION)
        with pytest.raises(
            ValueError, match=r"per_leaf is True, but .* pass per_leaf=False\."
        ):
            optabs.mixing_weights(state, per_leaf=True)
        weights = optabs.mixing_weights(state)
        assert_equal(weights, dict.fromkeys(weights, np.float32(0.25)))

    def test_uniform_weights_are_not_called_one_set(self) -> None:
        state = optabs.dao_e(controller=Controller.uniform()).init(POSITION)
        with pytest.raises(ValueError, match=r"per_leaf is True") as error:
            optabs.mixing_weights(state, per_leaf=True)
        assert "has one set of weights for all leaves" not in str(error.value)
