"""What makes a run what it is, as values that a checkpoint can keep and compare."""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optabs.training import batches
from optabs.training.program import Inputs, Limits, Plan, Run, update

# A jaxpr prints the address of a function, which is another one in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identity(plan: Plan, run: Run, inputs: Inputs, limits: Limits) -> dict[str, Any]:
    """Everything that a run's numbers depend on, but the values of its data.

    Returns:
      name -> a JSON value, the names to be read after "a run with another".
    """
    batch = batches.example(inputs.data, plan.batch_size)
    step = _program(lambda *args: update(plan, *args), run.params, run, run.loss_sum, batch)
    return {
        "version of jax": jax.__version__,
        "model (names, shapes or dtypes of its parameters)": _structure(run.params),
        "data set (names, shapes or dtypes of its arrays)": _structure(inputs.data),
        "batch_size": plan.batch_size,
        "sampling": plan.sampling,
        "key": _numbers(inputs.key).tolist(),
        "tolerance or params_tolerance": [
            float(limits.tolerance),
            float(limits.params_tolerance),
        ],
        "loss_fn": _program(plan.loss_fn, run.params, batch),
        "optimizer": [_structure(run.opt_state), step],
    }


def _structure(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]


def _program(function: Callable[..., Any], *args: Any) -> str:
    closed = jax.make_jaxpr(function)(*args)
    digest = hashlib.sha256(_ADDRESS.sub("", str(closed.jaxpr)).encode())
    for constant in closed.consts:
        digest.update(_numbers(constant).tobytes())
    return digest.hexdigest()


def _numbers(array: Any) -> np.ndarray:
    typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if typed else array)
