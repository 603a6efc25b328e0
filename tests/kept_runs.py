"""A run of `fit` that is kept in a folder, for the tests of checkpoints."""

import pathlib
from typing import Any

import jax
import numpy as np
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
    assert ours._replace(params=0, opt_state=0, history=0) == theirs._replace(
        params=0, opt_state=0, history=0
    )
    for name in ("params", "opt_state", "history"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        jax.tree.map(np.testing.assert_array_equal, mine, other)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
