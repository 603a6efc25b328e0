"""What the losses refuse, labels out of range above all."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from loss_cases import (
    CLASSES,
    NAMES,
    K,
    batch_of,
    looped,
    one_hot,
    opcodes,
    sentence,
)

from optabs import losses

x2, x23, i2 = np.zeros(2), np.zeros((2, 3)), np.zeros(2, int)
REFUSED = [
    (losses.mse, (np.zeros((2, 1)), x2), "targets have shape (2,) where predictions have "
     "(2, 1); pass the same shape for both."),
    (losses.mae, (1.0, 1.0), "predictions are a scalar; pass a last axis of entries."),
    (losses.mse, (np.zeros((2, 0)), np.zeros((2, 0))), "predictions have shape (2, 0); pass a "
     "last axis of 1 or more entries."),
    (losses.cosine_distance, (i2, x2), "predictions are int32; pass floating-point numbers."),
    (losses.mse, (x2, x2 > 0), "targets are bool; pass integers or floating-point numbers."),
    (losses.mse, (x2, 1j * x2), "targets are complex128; pass integers or floating-point "
     "numbers."),
    (losses.huber, (x2, x2, 0.0), "delta is 0.0; pass a finite number above 0."),
    (losses.huber, (x2, x2, math.nan), "delta is nan; pass a finite number above 0."),
    (losses.huber, (x2, x2, True), "delta is True, a bool; pass a finite number above 0."),
    (losses.huber, (x2, x2, jnp.ones(2)), "delta is an array float32[2]; pass a finite number "
     "above 0."),
    (losses.hinge, (0.0, 0), "scores are a scalar; pass a last axis of classes."),
    (losses.hinge, (np.zeros((2, 1)), i2), "scores have shape (2, 1); pass a last axis of 2 "
     "or more classes."),
    (losses.hinge, (x23, np.zeros(3, int)), "labels have shape (3,) where scores have (2, 3); "
     "pass class indices of shape (2,) or rows of shape (2, 3)."),
    (losses.cross_entropy, (x23, x2), "targets are float64 in the shape of class indices, "
     "(2,); pass integers, or rows of shape (2, 3)."),
    (losses.softmax_cross_entropy, (x23, x23 > 0), "targets are bool; pass integers or "
     "floating-point numbers."),
    (losses.hinge, (x23, i2 > 0), "labels are bool; pass integers or floating-point numbers."),
    (losses.hinge, (x23, np.array([-1, 9])), "labels hold -1; pass class indices from 0 to "
     "2."),
    (losses.softmax_cross_entropy, (x2, 7), "targets hold 7; pass class indices from 0 to 1."),
    (losses.cross_entropy, (x23, np.uint8([0, 3])), "targets hold 3; pass class indices from "
     "0 to 2."),
    (losses.sigmoid_cross_entropy, (np.zeros((2, 1)), i2), "labels have shape (2,) where "
     "logits have (2, 1); pass the same shape for both."),
    (losses.sigmoid_cross_entropy, (x2, np.array([1, -1])), "labels hold -1; pass 0, 1 or the "
     "probability of class 1."),
    (losses.sigmoid_cross_entropy, (x2, np.array([0.5, np.nan])), "labels hold nan; pass 0, 1 "
     "or the probability of class 1."),
    (losses.sigmoid_cross_entropy, (x2, i2 > 0), "labels are bool; pass integers or "
     "floating-point numbers."),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "words"), REFUSED)
def test_refused_in_one_sentence(
    function: Any, arguments: tuple[Any, ...], words: str
) -> None:
    for call in (function, lambda *_: jax.jit(lambda: function(*arguments))()):
        with pytest.raises(ValueError, match="pass") as refusal:
            call(*arguments)
        assert str(refusal.value) == words


@pytest.mark.parametrize("name", [*CLASSES, "sigmoid_cross_entropy"])
class TestTracedLabelsOutOfRange:
    def arguments(self, name: str) -> tuple[jax.Array, jax.Array, str]:
        first, second = batch_of(name)
        bad = -1.5 if name == "sigmoid_cross_entropy" else K
        labels = jnp.asarray(second).at[2].set(bad)
        return jnp.asarray(first), labels, f"hold {bad}; pass "

    @pytest.mark.slow
    def test_value_and_gradient_of_their_instance_are_nan(self, name: str) -> None:
        first, labels, _ = self.arguments(name)
        function = getattr(losses, name)
        right = function(first, batch_of(name)[1])
        for value in (function(first, labels), jax.jit(function)(first, labels)):
            assert np.isnan(value[2])
            others = [0, 1, 3, 4]
            np.testing.assert_allclose(value[others,], right[others,], rtol=1e-6)
        slope = jax.grad(lambda p: function(p, labels)[others,].sum() + function(p, labels)[2])
        slope = slope(first)
        assert np.isnan(slope[2]).all()
        assert np.isfinite(slope[others,]).all()

    @pytest.mark.slow
    def test_checkify_has_the_sentence(self, name: str) -> None:
        first, labels, words = self.arguments(name)
        function = getattr(losses, name)
        good = jnp.asarray(batch_of(name)[1])
        places = {
            "call": function,
            "vmap": jax.vmap(function),
            "map": lambda p, t: jax.lax.map(lambda pair: function(*pair), (p, t)),
            "scan": lambda p, t: jax.lax.scan(
                lambda total, pair: (total + function(*pair), None), 0.0, (p, t)
            ),
            "scan of vmap": lambda p, t: jax.lax.scan(
                lambda total, pair: (total, jax.vmap(function)(*pair)), 0, (p[None], t[None])
            ),
            "gradient": jax.grad(lambda p, t: function(p, t).sum()),
        }
        for place, inside in places.items():
            assert words in (sentence(inside, first, labels) or ""), place
            assert sentence(inside, first, good) is None, place

    @pytest.mark.slow
    def test_without_checkify_it_costs_nothing(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, labels, _ = self.arguments(name)

        def programs() -> list[list[str]]:
            # Fresh functions, or jit would give the program that it has.
            def total(p: jax.Array, t: jax.Array) -> jax.Array:
                return getattr(losses, name)(p, t).sum()

            def scanned(p: jax.Array, t: jax.Array) -> jax.Array:
                return jax.lax.scan(lambda c, x: (c + total(*x), None), 0.0, (p, t))[0]

            kinds = total, jax.grad(total), jax.grad(scanned), jax.grad(jax.checkpoint(total))
            return [opcodes(kind, first, labels) for kind in kinds]

        with_check = programs()
        seen = []
        monkeypatch.setattr(checkify, "debug_check", lambda *a, **k: seen.append(a))
        assert programs() == with_check
        assert all(with_check)
        assert seen

    def test_asking_for_the_error_alone_leaves_the_network_out(self, name: str) -> None:
        width = 1 if name == "sigmoid_cross_entropy" else K
        weights, inputs = jnp.ones((7, width)), jnp.ones((5, 7))
        _, labels, words = self.arguments(name)

        def network(w: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
            scores = jax.nn.sigmoid(x @ w)
            return getattr(losses, name)(scores[:, 0] if width == 1 else scores, t).sum()

        checked = checkify.checkify(network, errors=checkify.user_checks)
        both = opcodes(checked, weights, inputs, labels)
        alone = opcodes(lambda *a: checked(*a)[0], weights, inputs, labels)
        assert {"dot", "exponential"} & set(both)
        assert not {"dot", "exponential", "custom-call"} & set(alone)
        assert words in (sentence(network, weights, inputs, labels) or "")


def test_an_empty_batch_has_no_wrong_label() -> None:
    scores, labels = jnp.zeros((0, K)), jnp.zeros(0, int)
    assert losses.hinge(scores, labels).shape == (0,)
    assert sentence(losses.hinge, scores, labels) is None


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("name", NAMES)
def test_sharded_batches(name: str, kind: AxisType) -> None:
    mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(kind, kind))
    first, second = batch_of(name, (2, 4))
    choices = [second, one_hot(second)] if name in CLASSES else [second]
    for other in choices:
        with jax.set_mesh(mesh):
            spread = NamedSharding(mesh, PartitionSpec("rows", "columns"))
            pair = [jax.device_put(jnp.asarray(v), spread) for v in (first, other)]
            value = jax.jit(getattr(losses, name))(*pair)
            slope = jax.jit(jax.grad(lambda p, t: getattr(losses, name)(p, t).sum()))(*pair)
            said = sentence(getattr(losses, name), *pair)
        expected = looped(name, first, second)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        assert slope.sharding.is_equivalent_to(spread, first.ndim)
        assert said is None


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_classes_may_be_sharded_on_an_explicit_mesh(name: str) -> None:
    mesh = jax.make_mesh((4, 2), ("rows", "classes"), axis_types=(AxisType.Explicit,) * 2)
    scores, classes = map(jnp.asarray, batch_of(name, (4,)))
    function = getattr(losses, name)
    plain = function(scores, classes)
    with jax.set_mesh(mesh):
        scores = jax.device_put(scores, NamedSharding(mesh, PartitionSpec("rows", "classes")))
        classes = jax.device_put(classes, NamedSharding(mesh, PartitionSpec("rows")))
        sharded = function(scores, classes)
        slope = jax.grad(lambda scores: function(scores, classes).sum())(scores)
    np.testing.assert_allclose(sharded, plain, rtol=1e-6)
    assert np.isfinite(slope).all()
