"""`fit` refuses what it cannot use in one sentence, before any training."""

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from regression import loss_fn

import optabs
from optabs.training import loop

DATA = regression.data()
INPUTS, TARGETS = DATA


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, params: Any, batch: Any) -> jax.Array:
        return loss_fn(params, batch)


def scores(params: Any, batch: Any) -> jax.Array:
    inputs, labels = batch
    return optabs.losses.softmax_cross_entropy(inputs @ params["w"], labels).mean()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"data": ()},
            "data has no arrays; pass a pytree of arrays, such as (inputs, labels).",
        ),
        (
            {"data": (INPUTS, TARGETS[:-1])},
            "data has arrays of shapes (22, 3), (21, 2); pass arrays whose first axes",
        ),
        ({"data": (INPUTS, 3.0)}, "data has arrays of shapes (22, 3), (); pass arrays whose"),
        ({"data": (INPUTS[:0], TARGETS[:0])}, "data has 0 instances; pass at least one."),
        ({"batch_size": 0}, "batch_size is 0; pass None for the whole set, or a whole number"),
        ({"batch_size": 23}, "batch_size is 23; pass None for the whole set, or a whole num"),
        ({"batch_size": 2.5}, "batch_size is 2.5; pass None for the whole set, or a whole n"),
        ({"batch_size": True}, "batch_size is True; pass None for the whole set, or a whole"),
        ({"epochs": 0}, "epochs is 0; pass a whole number from 1 to 2**31 - 1."),
        ({"epochs": 1e3}, "epochs is 1000.0, a float; pass a whole number from 1 to"),
        ({"max_steps": 0}, "max_steps is 0; pass a whole number from 1 to 2**31 - 1."),
        ({"tolerance": -1e-3}, "tolerance is -0.001; pass a finite number that is 0 or more."),
        ({"tolerance": np.nan}, "tolerance is nan; pass a finite number that is 0 or more."),
        ({"params_tolerance": -1}, "params_tolerance is -1; pass a finite number that is 0"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds is -1; pass a finite number that is"),
        ({"sampling": "sorted"}, "sampling is 'sorted'; pass 'shuffle' or 'random'."),
        ({"sampling": "random"}, "sampling is 'random' but batch_size is None; pass a batch_"),
        ({"key": 3}, "key is 3; pass one jax.random.key(seed), or None for seed 0."),
        ({"key": jax.random.split(jax.random.key(0))}, "pass one jax.random.key(seed), or"),
        ({"params": {}}, "params has no arrays; pass a pytree of floating-point arrays."),
        (
            {"params": regression.params() | {"n": jnp.arange(3)}},
            "params['n'] is int32; pass floating-point arrays only, and let loss_fn close",
        ),
        (
            {"optimizer": optabs.adam},
            "optimizer is the function adam; pass what it returns, such as adam(1e-3).",
        ),
        (
            {"metrics": {"loss2": loss_fn}},
            "metrics has loss2 but validation_data is None; pass",
        ),
        (
            {"metrics": {"loss": loss_fn}, "validation_data": DATA},
            "metrics has 'loss', which the history keeps for loss_fn; rename it.",
        ),
        ({"metrics": [loss_fn]}, "metrics is a list; pass a mapping from names to functions."),
        ({"data": "abc"}, "data holds a str that is no array of numbers; pass a pytree of"),
        (
            {"data": (INPUTS, np.arange(22) + 2**32)},
            "data holds 4294967296, which int32 cannot; pass smaller numbers, or turn on",
        ),
        ({"params": "abc"}, "params is a str; pass a pytree of floating-point arrays."),
        (
            {"validation_data": INPUTS},
            "validation_data is another tree than data; pass one",
        ),
        ({"tolerance": jnp.float32(-1)}, "tolerance is -1.0; pass a finite number that is 0"),
        (
            {"metrics": {"two": lambda params, batch: batch[1]}, "validation_data": DATA},
            "two returns float32 of shape (22, 2); return one floating-point number for a",
        ),
        ({"validation_data": (INPUTS, TARGETS[:3])}, "validation_data has arrays of shapes"),
        (
            {"loss_fn": lambda params, batch: params["w"].sum() + batch[1]},
            "loss_fn returns float32 of shape (22, 2); return one floating-point number",
        ),
        (
            {"loss_fn": lambda params, batch: (loss_fn(params, batch), 1.0)},
            "loss_fn returns a tuple; return one floating-point number for a batch",
        ),
        ({"loss_fn": 3.0}, "loss_fn is a float, which cannot be called; pass a function"),
        (
            {"loss_fn": Unhashable()},
            "loss_fn is a Unhashable, which cannot be hashed",
        ),
        (
            {"loss_fn": lambda params, batch: jnp.int32(3)},
            "loss_fn returns int32 of shape (); return one floating-point number",
        ),
        (
            {"data": (INPUTS, TARGETS[:, :1])},
            "targets",  # the sentence of optabs.losses.mse
        ),
        (
            {"opt_state": optabs.sgd(0.1).init(regression.params())},
            "opt_state is not of this optimizer and these params; pass the opt_state of an",
        ),
    ],
)
def test_bad_input(changed: dict[str, Any], sentence: str) -> None:
    given = {
        "loss_fn": loss_fn,
        "params": regression.params(),
        "optimizer": optabs.adam(0.1),
        "data": DATA,
    } | changed
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        optabs.fit(**given)
    assert str(raised.value).count("\n") == 0


def test_inside_a_transformation() -> None:
    def inner(scale: jax.Array) -> Any:
        params = jax.tree.map(lambda leaf: scale * leaf, regression.params())
        return optabs.fit(loss_fn, params, optabs.sgd(0.1), DATA).params

    with pytest.raises(ValueError, match="fit is called inside a jax transformation"):
        jax.jit(inner)(1.0)


def test_tolerances_may_be_arrays() -> None:
    near = jnp.float32(1e-3)
    result = optabs.fit(
        loss_fn,
        regression.params(),
        optabs.sgd(0.1),
        DATA,
        params_tolerance=near,
        tolerance=near,
    )
    assert result.converged


@pytest.mark.parametrize("size", [None, 4, 5])
@pytest.mark.parametrize("where", ["data", "validation_data"])
def test_labels_out_of_range_are_found_before_training(
    size: int | None, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "advance", None)  # training would fail otherwise
    labels = jnp.zeros(22, jnp.int32)
    data = {"data": (INPUTS, labels), "validation_data": (INPUTS, labels)}
    data[where] = (INPUTS, labels.at[21].set(2))
    with pytest.raises(
        ValueError, match=r"targets hold 2; pass class indices from 0 to 1\."
    ) as raised:
        optabs.fit(scores, regression.params(), optabs.sgd(0.1), batch_size=size, **data)
    assert "check" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_labels_are_checked_too(kind: AxisType) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("x"))
        inputs, _ = regression.data(24)
        labels = jnp.zeros(24, jnp.int32)
        params = jax.device_put(regression.params(), NamedSharding(mesh, PartitionSpec()))
        for bad, size in ((0, 8), (0, 5), (2, 8), (2, 5), (2, None)):
            data = jax.device_put((inputs, labels.at[23].set(bad)), place)
            arguments = (scores, params, optabs.sgd(0.1), data)
            if not bad:
                optabs.fit(*arguments, batch_size=size, epochs=1)
                continue
            with pytest.raises(ValueError, match=r"targets hold 2; pass class indices from 0"):
                optabs.fit(*arguments, batch_size=size, epochs=1)


@pytest.mark.slow
def test_labels_in_range_train() -> None:
    labels = (INPUTS[:, 0] > 0).astype(jnp.int32)
    result = optabs.fit(
        scores, regression.params(), optabs.adam(0.1), (INPUTS, labels), batch_size=5
    )
    assert result.history["loss"][-1] < result.history["loss"][0] / 2


@pytest.mark.parametrize(
    ("options", "module"),
    [({"progress": True}, "tqdm"), ({"checkpoint_dir": "unused"}, "orbax.checkpoint")],
)
def test_a_missing_package_names_the_extra(
    options: dict[str, Any],
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    import importlib

    original = importlib.import_module

    def missing(name: str, *args: Any) -> Any:
        if name == module:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=rf"'{module}'.*pip install \"optabs\[training\]\""):
        optabs.fit(loss_fn, regression.params(), optabs.sgd(0.1), DATA, **options)


def test_optax_transformations_without_extra_arguments_are_taken() -> None:
    plain = optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (jax.tree.map(lambda u: -0.1 * u, updates), state),
    )
    result = optabs.fit(loss_fn, regression.params(), plain, DATA, epochs=2)
    assert result.steps == 2
