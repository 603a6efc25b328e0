"""What makes a run what it is, as values that a checkpoint can keep and compare."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

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
    step = program_text(
        lambda *args: update(plan, *args), run.params, run, run.loss_sum, batch
    )
    return {
        "version of jax": jax.__version__,
        "model (names, shapes or dtypes of its parameters)": structure(run.params),
        "data set": [structure(inputs.data), digest(inputs.data)],
        "batch_size": plan.batch_size,
        "sampling": plan.sampling,
        "key": numbers(inputs.key).tolist(),
        "tolerance or params_tolerance": [
            float(limits.tolerance),
            float(limits.params_tolerance),
        ],
        "loss_fn": program_text(plan.loss_fn, run.params, batch),
        "optimizer": [structure(run.opt_state), step],
        "validation_data": [structure(inputs.validation), digest(inputs.validation)],
        "metrics": [name for name, _ in plan.metrics],
        "start (params or opt_state)": digest(given),
    }


def digest(tree: Any) -> str:
    """A digest of all numbers of a tree of arrays."""
    hashed = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        # A memoryview cannot be cast where an extent is 0.
        hashed.update(np.ascontiguousarray(numbers(leaf)).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def structure(tree: Any) -> list[str]:
    """The path, dtype and shape of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]


def program_text(function: Callable[..., Any], *args: Any) -> str:
    """A digest of what a function computes, and of what it closes over."""
    closed = jax.make_jaxpr(function)(*args)
    text = _CHECK.sub("check", _ADDRESS.sub("", str(closed.jaxpr)))
    hashed = hashlib.sha256(text.encode())
    # The text has no numbers that functions inside of a jit or a scan close over.
    hashed.update(digest(list(_constants(closed))).encode())
    return hashed.hexdigest()


def _constants(program: Any) -> Iterator[Any]:
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    if isinstance(program, Jaxpr):
        for equation in program.eqns:
            for inner in jax.tree.leaves(list(equation.params.values())):
                yield from _constants(inner)


def numbers(array: Any) -> np.ndarray:
    """An array's numbers, those of a key too."""
    array = jnp.asarray(array)
    typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if typed else array)
