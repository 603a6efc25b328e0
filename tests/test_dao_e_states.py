"""DAO-E goes on from its own states alone, of any kind of experts and parameters."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_problem import experts
from sentences import assert_sentence
from trees import assert_equal

import optabs
from optabs import Controller

BUILT = {"sgd": optabs.sgd(0.1)}
LARGE = {f"layer_number_{index}": jnp.ones(2) for index in range(60)}
FEWER = dict(list(LARGE.items())[:-1])
ALIKE: dict[str, tuple[Any, Any, Any, str]] = {
    "fewer gradients": (FEWER, None, LARGE, "grads are PyTreeDef("),
    "a list of gradients": (list(LARGE.values()), None, LARGE, "grads are PyTreeDef(["),
    "fewer parameters": (LARGE, None, FEWER, "pass update gradients like the parameters."),
    "another shape": (
        LARGE | {"layer_number_7": jnp.ones((3, 2))},
        None,
        LARGE,
        "grads hold float32[3, 2] where params hold float32[2]; pass update gradients like",
    ),
    "no state": (LARGE, (), LARGE, "state is of type tuple; pass update the state that this"),
    "adam's state": (
        LARGE,
        optax.adam(0.1).init(LARGE),
        LARGE,
        "state is of type tuple; pass update the state that this optimizer's init made of",
    ),
    "a state of other experts": (
        LARGE,
        optabs.dao_e(0.1).init(LARGE),
        LARGE,
        "state is of the experts ['adam', 'lion', 'rmsprop', 'sgd'], not ['sgd']; pass update",
    ),
    "a state of other parameters": (
        LARGE,
        optabs.dao_e(experts=BUILT).init(FEWER),
        LARGE,
        "state is of other parameters or settings, or older; pass update the state that this",
    ),
    "a state of another controller": (
        LARGE,
        optabs.dao_e(experts=BUILT, controller=Controller.uniform()).init(LARGE),
        LARGE,
        "state is of other parameters or settings, or older; pass update the state that this",
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_gradients_parameters_and_state_belong_together(name: str) -> None:
    grads, state, position, sentence = ALIKE[name]
    optimizer = optabs.dao_e(experts=BUILT)
    state = optimizer.init(LARGE) if state is None else state
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        optimizer.update(grads, state, position)
    assert_sentence(str(error.value))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("maker", "other", "of", "given"),
    [
        pytest.param({"controller": Controller.paper()}, {}, (2,), (2,), id="paper's"),
        pytest.param({}, {"controller": Controller.paper()}, (2,), (2,), id="for paper"),
        pytest.param({}, {}, (2,), (3,), id="another length"),
        pytest.param({}, {}, (2, 1), (2, 3), id="one that broadcasts"),
        pytest.param({"previous": "bfloat16"}, {}, (64, 128), (64, 128), id="whole traces"),
        *(
            pytest.param(
                {"previous": one}, {"previous": other}, (3,), (3,), id=f"{one}, small"
            )
            for one, other in (("bfloat16", "thinned"), ("float32", "bfloat16"))
        ),
    ],
)
def test_a_state_of_another_shape_is_refused(
    maker: Any, other: Any, of: Any, given: Any, compiled: bool
) -> None:
    two = {"a": optabs.sgd(0.1), "b": optabs.sgd(0.2)}
    state = optabs.dao_e(experts=two, **maker).init(jnp.ones(of))
    optimizer, position = optabs.dao_e(experts=two, **other), jnp.ones(given)
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    with pytest.raises(ValueError, match="state is of other parameters or settings") as error:
        update(position, state, position)
    assert_sentence(str(error.value))


class _Older(NamedTuple):
    """A multiplier's state without its last field."""

    log_multiplier: Any
    cosines: Any
    step: Any
    step_trace: Any


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"experts": None},
        lambda state: {"experts": list(state.experts)},
        lambda state: {"experts": {"a": 1, 2: 3}},
        lambda state: {"count": 3},
        lambda state: {"count": None},
        lambda state: {"multiplier": ()},
        lambda state: {"multiplier": _Older(*state.multiplier[:4])},
        lambda state: {"multiplier": state.multiplier._asdict()},
        lambda state: {"multiplier": state.multiplier._replace(step=jnp.ones(3))},
        lambda state: {"controller": ()},
    ],
)
def test_what_came_out_of_a_checkpoint_in_another_form_is_refused(change: Any) -> None:
    optimizer = optabs.dao_e(experts=BUILT)
    position = jnp.ones(3)
    state = optimizer.init(position)
    with pytest.raises(ValueError, match="state is of") as error:
        optimizer.update(position, state._replace(**change(state)), position)
    assert_sentence(str(error.value))


def test_complex_gradients_of_real_parameters_are_refused() -> None:
    optimizer = optabs.dao_e(experts=BUILT)
    position = jnp.ones(3)
    wanted = "grads hold complex64[3] where params hold float32[3]; pass update gradients like"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        optimizer.update(position + 1j, optimizer.init(position), position)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_experts_state_of_another_optimizer_is_refused(compiled: bool) -> None:
    given = {"adam": optabs.adam(0.1), "scheduled": optabs.sgd(lambda count: 0.1)}
    params = jnp.ones(3)
    for inner in given.values():
        optimizer = optabs.steered(optabs.sgd(0.1))
        update = jax.jit(optimizer.update) if compiled else optimizer.update
        with pytest.raises(ValueError, match="state holds another optimizer's") as caught:
            update(params, optabs.steered(inner).init(params), params)
        assert len(str(caught.value)) <= 300
    uniform = optabs.dao_e(0.1, controller=Controller.uniform())
    with pytest.raises(ValueError, match="one of other parameters"):
        uniform.update(jnp.ones((3, 2)), uniform.init(jnp.ones((1, 2))), jnp.ones((3, 2)))


def changing(change: Any) -> optax.GradientTransformation:
    """Descent with a state that changes its kind in every update."""
    return optax.GradientTransformation(
        lambda params: {"m": jnp.zeros(3)},
        lambda grads, state, params=None: (jax.tree.map(lambda g: -g, grads), change(state)),
    )


CHANGES: dict[str, tuple[Any, str]] = {
    "dtype": (
        lambda state: {"m": state["m"].astype(jnp.bfloat16)},
        "experts: 'odd' turned float32[3] into bfloat16[3]; an expert's state must keep",
    ),
    "shape": (
        lambda state: {"m": jnp.zeros(6)},
        "experts: 'odd' turned float32[3] into float32[6]; an expert's state must keep",
    ),
    "tree": (lambda state: {**state, "n": 0}, "experts: 'odd' turned PyTreeDef("),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_an_experts_state_keeps_its_kind(name: str, compiled: bool) -> None:
    change, sentence = CHANGES[name]
    optimizer = optabs.dao_e(experts={"odd": changing(change), **BUILT})
    state = optimizer.init(jnp.ones(3))
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        update(jnp.ones(3), state, jnp.ones(3))
    assert_sentence(str(error.value))


def test_the_order_of_the_experts_in_a_state_does_not_matter() -> None:
    """As in one that was restored from a file."""
    optimizer = optabs.dao_e(experts=experts(("adam", "lion", "sgd")))
    position, grads = jnp.ones(3), jnp.array([1.0, -2.0, 0.1])
    _, state = optimizer.update(grads, optimizer.init(position), position)
    turned = state._replace(experts=dict(reversed(state.experts.items())))
    assert_equal(*(optimizer.update(grads, each, position)[0] for each in (state, turned)))


@jax.tree_util.register_pytree_node_class
class Box:
    """A container of parameters without an equality of its own."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def tree_flatten(self) -> Any:
        return (self.weights,), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> "Box":
        return cls(*children)


class TestStatesOfOtherKinds:
    @pytest.mark.parametrize("compiled", [False, True])
    def test_containers_without_an_equality(self, compiled: bool) -> None:
        optimizer = optabs.dao_e(experts=experts(("sgd",)))
        update = jax.jit(optimizer.update) if compiled else optimizer.update
        position = Box(jnp.ones(3))
        state = optimizer.init(position)
        for _ in range(2):
            updates, state = update(position, state, position)
        assert isinstance(updates, Box)

    def test_python_numbers_in_an_experts_state(self) -> None:
        counting = optax.GradientTransformation(
            lambda params: {"n": 0, "x": 0.5},
            lambda grads, state, params=None: (
                jax.tree.map(lambda g: -g, grads),
                {"n": state["n"] + 1, "x": state["x"]},
            ),
        )
        optimizer = optabs.dao_e(experts={"counting": counting})
        state = optimizer.init(jnp.ones(3))
        _, state = optimizer.update(jnp.ones(3), state, jnp.ones(3))
        assert state.experts["counting"].inner["n"] == 1

    @pytest.mark.parametrize("built", [False, True])
    def test_multi_steps_as_an_expert(self, built: bool) -> None:
        made = optax.MultiSteps(optax.sgd(0.1), 2)
        optimizer = optabs.dao_e(experts={"slow": made if built else lambda rate: made})
        state = optimizer.init(jnp.ones(3))
        update, state = optimizer.update(jnp.ones(3), state, jnp.ones(3))
        np.testing.assert_array_equal(update, 0)
