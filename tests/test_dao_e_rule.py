"""DAO-E's steps, weights and multiplier against its rule in NumPy."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest
from dao_e_problem import (
    FEATURES,
    GIVEN,
    GRADS,
    LOSSES,
    RATES,
    STEPS,
    assert_follows,
    experts,
    flat,
    stacked,
    walk,
    walked,
)
from dao_e_reference import Step, mixture, proposals
from trees import params

import optabs
from optabs import Controller

CONTROLLERS = {
    "measured": Controller(),
    "one set": Controller(per_leaf=False),
    "no cap": Controller(cap=None),
    "no floor": Controller(floor=0.0),
    "no multiplier": Controller(multiplier_rate=None),
    "falls freely": Controller(shrink=1.0),
    "shortens freely": Controller(shorten=1.0),
    "hardly shortens": Controller(shorten=0.1, cap=None, floor=0.0),
    "gated": Controller(gated=True),
    "gate alone": Controller(gated=True, shrink=1.0),
    "constant rates": Controller(rate_floor=1.0),
    "frozen": Controller(rate=None),
    "uniform": Controller.uniform(),
    # A multiplier of 20, as at a rate of 0.5, would also multiply the weights' rounding.
    "by adam": Controller(rule="adam", rate=0.05, feature_rate=0.05, multiplier_rate=0.1),
    "paper": Controller.paper(),
    "other numbers": Controller(True, 0.05, 0.1, "relative", 0.3, 0.05, 0.1, 0.02),
}
ALL, FEW = tuple(RATES), ("lion", "sgd")


def by_hand(
    controller: Controller,
    names: Sequence[str],
    *,
    with_features: bool = True,
    with_loss: bool = True,
) -> list[Step]:
    grads = list(map(flat, GRADS))
    return mixture(
        flat(params()),
        grads,
        [proposals(name, RATES[name], grads) for name in sorted(names)],
        controller,
        list(LOSSES) if with_loss else None,
        FEATURES if with_features else None,
    )


def numbers_of(controller: Controller) -> dict[str, float]:
    """Those of its settings that may be traced."""
    settings = controller._asdict().items()
    return {name: value for name, value in settings if isinstance(value, float)}


@functools.cache
def program(controller: Controller) -> Callable[..., Any]:
    """The compiled walk of a few experts, for any numbers in place of the controller's."""

    def run(numbers: dict[str, Any], *given: Any) -> Any:
        optimizer = optabs.dao_e(
            experts=experts(FEW),
            controller=controller._replace(**numbers),
            features=(GIVEN,),
            previous="float32",
        )
        positions, states = walk(optimizer, *given)
        return positions, states.controller

    return jax.jit(run)


class TestTheRule:
    @pytest.mark.slow
    @pytest.mark.parametrize("features", [(), (GIVEN,)], ids=["b", "W f + b"])
    @pytest.mark.parametrize("name", ["measured", "paper"])
    def test_the_defaults(self, name: str, features: Any) -> None:
        optimizer = optabs.dao_e(
            experts=experts(ALL),
            controller=CONTROLLERS[name],
            features=features,
            previous="float32",
        )
        positions, states = walked(optimizer, GRADS, value=LOSSES, batch=FEATURES)
        wanted = by_hand(CONTROLLERS[name], ALL, with_features=bool(features))
        assert_follows(wanted, positions, states.controller)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", CONTROLLERS)
    def test_each_part_on_and_off(self, name: str) -> None:
        numbers = numbers_of(CONTROLLERS[name])
        # Those with the same parts share a program.
        compiled = program(CONTROLLERS[name]._replace(**dict.fromkeys(numbers, 0.5)))
        each = {"value": LOSSES, "batch": FEATURES}
        positions, controllers = compiled(numbers, params(), stacked(GRADS), each)
        assert_follows(by_hand(CONTROLLERS[name], FEW), positions, controllers)

    @pytest.mark.parametrize("names", [("lion",), ("sgd", "adam"), ("sgd", "lion", "adam")])
    def test_any_number_of_experts_and_no_loss(self, names: Sequence[str]) -> None:
        optimizer = optabs.dao_e(experts=experts(names), previous="float32")
        positions, states = walked(optimizer, GRADS)
        wanted = by_hand(Controller(), names, with_features=False, with_loss=False)
        assert_follows(wanted, positions, states.controller)

    @pytest.mark.slow
    def test_no_part_is_idle(self) -> None:
        """Each setting above ends elsewhere than every other, so none is checked in vain."""
        controllers = [c for c in CONTROLLERS.values() if c.rate is not None]
        runs = [by_hand(c, FEW, with_features=given) for c in controllers for given in (0, 1)]
        runs += [by_hand(c, FEW) for c in CONTROLLERS.values() if c.rate is None]
        ends = [np.stack([step.theta[0].ravel() for step in run]) for run in runs]
        for index, one in enumerate(ends):
            for other in ends[:index]:
                assert not np.allclose(one, other, rtol=1e-4, atol=1e-4)


class TestTheMultiplier:
    STEEP = Controller(multiplier_rate=0.1, rate_floor=1.0, shrink=1.0)
    ONE = optabs.dao_e(experts={"sgd": optabs.sgd(0.01)}, controller=STEEP, previous="float32")

    @pytest.mark.slow
    @pytest.mark.parametrize(("sign", "end"), [(1.0, 3.0), (-1.0, -7.0)])
    def test_it_stays_in_its_range(self, sign: float, end: float) -> None:
        """Gradients that agree for ever, and gradients that turn around in every step."""
        grads = [jax.tree.map(lambda g, t=t: g * sign**t, GRADS[0]) for t in range(90)]
        _, states = walked(self.ONE, grads)
        path = np.asarray(states.controller.log_multiplier)
        np.testing.assert_allclose(path[10], sign, rtol=1e-5)
        np.testing.assert_allclose(path[-1], end, rtol=1e-6)

    def test_the_gate_follows_the_loss(self) -> None:
        """Every step calls for a shorter one, which it gets but where the loss falls well."""
        grads = [jax.tree.map(lambda g, t=t: g * (-1.0) ** t, GRADS[0]) for t in range(STEPS)]
        losses = np.float32(1 + 0.1 * np.sin(np.arange(STEPS) / 3))
        controller = Controller(gated=True, multiplier_rate=0.1, rate_floor=1.0)
        optimizer = optabs.dao_e(
            experts={"sgd": optabs.sgd(0.01)}, controller=controller, previous="float32"
        )
        positions, states = walked(optimizer, grads, value=losses)
        numbers = list(map(flat, grads))
        wanted = mixture(
            flat(params()),
            numbers,
            [proposals("sgd", 0.01, numbers)],
            controller,
            list(losses),
        )
        assert_follows(wanted, positions, states.controller)
        held = np.diff(states.controller.log_multiplier) == 0
        assert 10 < held.sum() < 50
