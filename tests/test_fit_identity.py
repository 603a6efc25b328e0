"""A checkpoint is read by its own run only, and by that one whatever happened between."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import regression
from kept_runs import OPTIMIZER, assert_same, contents, train
from regression import loss_fn

import optabs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"optimizer": optabs.adam(0.06)}, "optimizer"),
        ({"optimizer": optabs.adam_abs(0.05)}, "optimizer"),
        ({"optimizer": optabs.sgd(0.05)}, "optimizer"),
        ({"loss_fn": lambda params, batch: 2 * loss_fn(params, batch)}, "loss_fn"),
        ({"batch_size": 6}, "batch_size"),
        ({"sampling": "random"}, "sampling"),
        ({"key": jax.random.key(6)}, "key"),
        ({"data": regression.data(21)}, "data set"),
        ({"tolerance": 1e-8}, "tolerance or params_tolerance"),
        ({"data": jax.tree.map(lambda leaf: 2 * leaf, regression.data())}, "data set"),
        ({"params": jax.tree.map(lambda leaf: leaf + 1, regression.params())}, "start"),
        ({"opt_state": OPTIMIZER.init(regression.params())}, "start"),
        ({"validation_data": None}, "validation_data"),
        ({"validation_data": regression.data(3)}, "validation_data"),
        ({"metrics": {"half": lambda *given: loss_fn(*given) / 2}}, "metrics"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(
    changed: dict[str, Any], name: str, tmp_path: pathlib.Path
) -> None:
    train(tmp_path / "run", epochs=2)
    kept = contents(tmp_path / "run")
    with pytest.raises(
        ValueError, match=f"holds a run with another {name}.*; pass another fol"
    ):
        train(tmp_path / "run", **changed)
    assert contents(tmp_path / "run") == kept


@pytest.mark.slow
def test_a_checkpoint_of_another_model(tmp_path: pathlib.Path) -> None:
    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch
        return optabs.losses.mse(inputs @ params["w"], targets).mean()

    train(tmp_path / "run", epochs=2)
    with pytest.raises(ValueError, match="holds a run with another model"):
        train(tmp_path / "run", params={"w": jnp.ones((3, 2))}, loss_fn=loss)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [lambda loss: loss, jax.jit], ids=["plain", "jitted"])
def test_constants_of_the_loss_are_part_of_the_run(
    wrapped: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    def weighted(weights: jax.Array) -> Any:
        return wrapped(lambda params, batch: loss_fn(params, batch) * weights.sum())

    train(tmp_path / "run", epochs=2, loss_fn=weighted(jnp.arange(3.0)))
    train(tmp_path / "run", epochs=2, loss_fn=weighted(jnp.arange(3.0)))
    with pytest.raises(ValueError, match="with another loss_fn;"):
        train(tmp_path / "run", epochs=2, loss_fn=weighted(jnp.ones(3)))


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"max_steps": 7}])
def test_a_shorter_run_than_the_one_kept_is_refused(
    changed: dict[str, int], tmp_path: pathlib.Path
) -> None:
    train(tmp_path / "run", epochs=6)
    kept = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="after 6 epochs and 30 steps; pass no smaller"):
        train(tmp_path / "run", **changed)
    assert contents(tmp_path / "run") == kept


@pytest.mark.slow
def test_losses_with_checks_resume_whatever_was_traced_before(tmp_path: pathlib.Path) -> None:
    inputs, targets = regression.data()
    classes = (targets[:, 0] > 0).astype(jnp.int32)

    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, classes = batch
        logits = inputs @ params["w"] + params["b"]
        return optabs.losses.softmax_cross_entropy(logits, classes).mean()

    options: dict[str, Any] = {
        "loss_fn": loss,
        "data": (inputs, classes),
        "validation_data": (inputs, classes),
    }
    train(tmp_path / "run", max_steps=13, **options)
    jax.jit(jax.grad(loss))(regression.params(), (inputs, classes))
    optabs.losses.hinge(inputs, classes)
    assert_same(train(tmp_path / "run", **options), train(**options))


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_a_folder_that_is_a_file(inner: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=r"checkpoint_dir .* is a file, or below one; pass a"):
        train(tmp_path / "run" / inner)


@pytest.mark.parametrize("folder", ["", 3])
def test_a_folder_that_is_no_path(folder: Any) -> None:
    with pytest.raises(ValueError, match=r"checkpoint_dir is .*; pass the path of a folder"):
        train(folder)
