"""DAO-E's steps, weights and multiplier against its rule in NumPy."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dao_e_problem import (
    FEATURES,
    GIVEN,
    GRADS,
    RATES,
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
from optabs.mixture import controller as control

CONTROLLERS = {
    "measured": Controller(),
    # A multiplier of 20, as at a rate of 1, would also multiply the weights' rounding.
    "no cap": Controller(cap=None, multiplier_rate=0.2),
    "no floor": Controller(floor=0.0),
    "no multiplier": Controller(multiplier_rate=None),
    "short steps": Controller(cap=0.004),
    "last update": Controller(gamma=0.0),
    "short trace": Controller(gamma=0.9),
    "frozen": Controller(rate=None),
    "uniform": Controller.uniform(),
    "paper": Controller.paper(),
    "other numbers": Controller(0.03, 0.1, 0.3, 0.05, 0.5, 0.2),
}
ALL, FEW = tuple(RATES), ("lion", "sgd")


def by_hand(
    controller: Controller,
    names: Sequence[str],
    *,
    with_features: bool = True,
) -> list[Step]:
    grads = list(map(flat, GRADS))
    return mixture(
        flat(params()),
        grads,
        [proposals(name, RATES[name], grads) for name in sorted(names)],
        controller,
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
        return walk(optimizer, *given)

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
        positions, states = walked(optimizer, GRADS, batch=FEATURES)
        wanted = by_hand(CONTROLLERS[name], ALL, with_features=bool(features))
        assert_follows(wanted, positions, states)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", CONTROLLERS)
    def test_each_part_on_and_off(self, name: str) -> None:
        numbers = numbers_of(CONTROLLERS[name])
        # Those with the same parts share a program.
        compiled = program(CONTROLLERS[name]._replace(**dict.fromkeys(numbers, 0.5)))
        each = {"batch": FEATURES}
        positions, states = compiled(numbers, params(), stacked(GRADS), each)
        assert_follows(by_hand(CONTROLLERS[name], FEW), positions, states)

    @pytest.mark.parametrize("names", [("lion",), ("sgd", "adam"), ("sgd", "lion", "adam")])
    def test_any_number_of_experts(self, names: Sequence[str]) -> None:
        optimizer = optabs.dao_e(experts=experts(names), previous="float32")
        positions, states = walked(optimizer, GRADS)
        wanted = by_hand(Controller(), names, with_features=False)
        assert_follows(wanted, positions, states)

    def test_steps_outward(self) -> None:
        """Gradients that ask for larger parameters, in noise, and become small."""
        random = np.random.default_rng(5)

        def drawn(size: float) -> Any:
            return jax.tree.map(
                lambda p: jnp.asarray(size * (2 * random.normal(size=p.shape) - p)), params()
            )

        grads = [drawn(0.95**t) for t in range(40)]
        known = list(map(flat, grads))
        proposed = [proposals(name, RATES[name], known) for name in sorted(FEW)]
        wanted = mixture(flat(params()), known, proposed, Controller())
        optimizer = optabs.dao_e(experts=experts(FEW), previous="float32")
        positions, states = walked(optimizer, grads)
        assert_follows(wanted, positions, states)
        both = [
            [np.concatenate([x.ravel() for x in leaves]) for leaves in (s.step_trace, s.theta)]
            for s in wanted
        ]
        cosines = [s @ x / np.linalg.norm(s) / np.linalg.norm(x) for s, x in both]
        assert np.mean(np.array(cosines) > control.GROWTH) > 0.3

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


def test_uniform_weights_are_the_same_whoever_is_asked_for_them() -> None:
    assert Controller.paper().uniform() == Controller.uniform()


class TestWhatStays:
    """The published form and uniform weights as they were before there were traces."""

    RECORD = json.loads(pathlib.Path(__file__).with_name("dao_e_record.json").read_text())

    @pytest.mark.slow
    @pytest.mark.parametrize("name", RECORD)
    def test_as_recorded(self, name: str) -> None:
        controller = getattr(Controller, name.split()[0])()
        features = (GIVEN,) if name == "paper" else ()
        optimizer = optabs.dao_e(
            experts=experts(ALL), controller=controller, features=features, previous="float32"
        )
        steps = len(self.RECORD[name]["params"])
        assert steps >= 10
        positions, states = walked(optimizer, GRADS[:steps], batch=FEATURES[:steps])
        leaves = [np.reshape(leaf, (steps, -1)) for leaf in jax.tree.leaves(positions)]
        wanted = self.RECORD[name]
        np.testing.assert_allclose(
            np.concatenate(leaves, axis=1), wanted["params"], rtol=1e-6, atol=1e-6
        )
        np.testing.assert_allclose(
            states.controller.weights[:, 0], wanted["weights"], rtol=1e-5
        )
