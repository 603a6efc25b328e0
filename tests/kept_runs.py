"""A run of `fit` that is kept in a folder, for the tests of checkpoints."""

import pathlib
from typing import Any

import chex
import jax
import regression
from regression import loss_fn

import optabs

OPTIMIZER = optabs.adam(0.05)


def train(folder: pathlib.Path | None = None, **changed: Any) -> Any:
    """The run, with some arguments changed."""
    given: dict[str, Any] = {
        "loss_fn": loss_fn,
        "params": regression.params(),
        "optimizer": OPTIMIZER,
        "data": regression.data(),
        "batch_size": 5,
        "epochs": 40,
        "key": jax.random.key(5),
        "tolerance": 1e-9,
        "params_tolerance": 1e-9,
        "validation_data": regression.data(4),
        "checkpoint_dir": folder,
        "checkpoint_seconds": 0.0,
    }
    return optabs.fit(**given | changed)


def assert_same(ours: Any, theirs: Any) -> None:
    """Compares two results of `fit` bit for bit."""
    assert ours.message == theirs.message
    ours, theirs = (result._replace(message=()) for result in (ours, theirs))
    chex.assert_trees_all_equal(ours, theirs, strict=True)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
