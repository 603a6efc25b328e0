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
# A checkify.check has a number, which counts the checks that this process has traced.
_CHECK = re.compile(r"select_n (False:bool\[\]|\w+) \d+:i32\[\] -1:i32\[\]")


def identity(
    plan: Plan, run: Run, given: Any, inputs: Inputs, limits: Limits
) -> dict[str, Any]:
    """Everything that a run's numbers depend on.

    Args:
      plan: what the program is compiled for.
      run: its first state.
      given: the first parameters, and the optimizer's state or None.
      inputs: key and data.
      limits: of which only the tolerances count: a run may be made longer.

    Returns:
      name -> a JSON value, the names to be read after "a run with another".
    """
    batch = batches.example(inputs.data, plan.batch_size)
    step = _program(lambda *args: update(plan, *args), run.params, run, run.loss_sum, batch)
    return {
        "version of jax": jax.__version__,
        "model (names, shapes or dtypes of its parameters)": _structure(run.params),
        "data set": [_structure(inputs.data), _digest(inputs.data)],
        "batch_size": plan.batch_size,
        "sampling": plan.sampling,
        "key": _numbers(inputs.key).tolist(),
        "tolerance or params_tolerance": [
            float(limits.tolerance),
            float(limits.params_tolerance),
        ],
        "loss_fn": _program(plan.loss_fn, run.params, batch),
        "optimizer": [_structure(run.opt_state), step],
        "validation_data": [_structure(inputs.validation), _digest(inputs.validation)],
        "metrics": [name for name, _ in plan.metrics],
        "start (params or opt_state)": _digest(given),
    }


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(_numbers(leaf)).data.cast("B"))
    return digest.hexdigest()


def _structure(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]


def _program(function: Callable[..., Any], *args: Any) -> str:
    closed = jax.make_jaxpr(function)(*args)
    text = _CHECK.sub("check", _ADDRESS.sub("", str(closed.jaxpr)))
    digest = hashlib.sha256(text.encode())
    digest.update(_digest(closed.consts).encode())
    return digest.hexdigest()


def _numbers(array: Any) -> np.ndarray:
    array = jnp.asarray(array)
    typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if typed else array)
