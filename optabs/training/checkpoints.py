"""Checkpoints of one run through orbax, and what they compare to know that run again."""

import hashlib
import json
import os
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Jaxpr

from optabs._checks import cut, require, short
from optabs.training import batches
from optabs.training.program import Inputs, Limits, Plan, Run, update

MAX_TO_KEEP = 2  # the newest, and one before it, should that be damaged
STEP_PREFIX = "step"  # other folders beside the checkpoints are neither read nor removed

# A jaxpr prints the address of a function, which is another one in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# A checkify.check has a number, which counts the checks that this process has traced.
_CHECK = re.compile(r"select_n (False:bool\[\]|\w+) \d+:i32\[\] -1:i32\[\]")


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    Args:
      folder: made at the first save.
      identity: what makes the run what it is: name -> a JSON value. Checkpoints with another
        one are refused, and left as they are.

    Raises:
      ImportError: orbax is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self._orbax = require("orbax.checkpoint", "training", "checkpoint_dir")
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise ValueError(f"checkpoint_dir is {short(folder)}; pass the path of a folder.")
        self._folder = pathlib.Path(folder).expanduser().absolute()
        self._identity = json.loads(json.dumps(identity))
        nearest = next(path for path in (self._folder, *self._folder.parents) if path.exists())
        if not nearest.is_dir():
            raise ValueError(
                f"checkpoint_dir {str(folder)!r} is a file, or below one; pass a folder."
            )

    def restore(
        self, like: Any, at_most: int | None = None
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read, or None where there is none.

        Args:
          like: a pytree of arrays; what is read has its structure, dtypes and shardings.
          at_most: the last step to look at; None for no limit.

        Returns:
          The arrays, and the notes saved with them.

        Raises:
          ValueError: the checkpoints are of another run, or none of them can be read.
        """
        if not self._folder.exists():
            return None
        with self._manager() as manager:
            steps = sorted(manager.all_steps(), reverse=True)
            if at_most is not None:
                steps = [step for step in steps if step <= at_most]
            damaged = []
            for step in steps:
                try:
                    notes = self._read(manager, step, notes=self._orbax.args.JsonRestore())
                    self._compare(notes["identity"])
                    named = self._orbax.args.StandardRestore(_to_numbered(like))
                    arrays = self._read(manager, step, arrays=named)
                except _OtherRunError as difference:
                    raise ValueError(str(difference)) from None
                except Exception as error:  # damaged files raise all kinds
                    damaged.append(step)
                    reason = cut(f"{type(error).__name__}: {error}")
                    continue
                if damaged:
                    warnings.warn(
                        f"checkpoint {damaged[0]} in {str(self._folder)!r} cannot be read "
                        f"({reason}); going on from {step}, and leaving it as it is.",
                        stacklevel=3,
                    )
                return _from_numbered(arrays, like), notes["notes"]
        if damaged:
            raise ValueError(
                f"no checkpoint in {str(self._folder)!r} can be read ({reason}); pass another "
                "checkpoint_dir to begin again."
            )
        return None

    def save(self, step: int, arrays: Any, notes: dict[str, Any]) -> None:
        """Writes a checkpoint; where that fails, says so and leaves the others."""
        args = self._orbax.args
        try:
            if jax.process_index() == 0:
                self._set_aside(step)
            _sync_processes(f"optabs set checkpoints aside from {step}")
            with self._manager() as manager:
                manager.save(
                    step,
                    args=args.Composite(
                        arrays=args.StandardSave(_to_numbered(arrays)),
                        notes=args.JsonSave({"identity": self._identity, "notes": notes}),
                    ),
                )
        except OSError as error:
            warnings.warn(
                f"checkpoint {step} could not be written into {str(self._folder)!r} "
                f"({cut(str(error))}); training goes on without it.",
                stacklevel=3,
            )

    def _set_aside(self, step: int) -> None:
        """Renames checkpoints from this step on, which could not be read."""
        # orbax writes no step below one that is there.
        for path in self._folder.glob(f"{STEP_PREFIX}_*"):
            number = path.name.removeprefix(f"{STEP_PREFIX}_")
            if number.isdecimal() and int(number) >= step:
                path.rename(path.with_name(f"unread_{path.name}_{time.time_ns()}"))

    def _manager(self) -> Any:
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=MAX_TO_KEEP, enable_async_checkpointing=False, step_prefix=STEP_PREFIX
        )
        return self._orbax.CheckpointManager(self._folder, options=options)

    def _read(self, manager: Any, step: int, **item: Any) -> Any:
        (name,) = item
        return manager.restore(step, args=self._orbax.args.Composite(**item))[name]

    def _compare(self, found: dict[str, Any]) -> None:
        for name, value in self._identity.items():
            if found.get(name) != value:
                raise _OtherRunError(
                    f"checkpoint_dir {str(self._folder)!r} holds a run with another {name}; "
                    "pass another folder, or what that run was given."
                )


def _sync_processes(name: str) -> None:
    """Where there are several processes, which read one folder, until all are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class _OtherRunError(Exception):
    pass


def _to_numbered(tree: Any) -> dict[str, jax.Array]:
    # Numbered leaves need no knowledge of the tree's node types to be read again, and orbax
    # refuses arrays without entries.
    leaves = jax.tree.leaves(tree)
    return {str(number): leaf for number, leaf in enumerate(leaves) if leaf.size}


def _from_numbered(numbered: dict[str, jax.Array], tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    found = [numbered.get(str(number), leaf) for number, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, found)


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
    batch = batches.batch_struct(inputs.data, plan.batch_size)
    step = program_digest(
        lambda *args: update(plan, *args), run.params, run, run.loss_sum, batch
    )
    return {
        "version of jax": jax.__version__,
        "model (names, shapes or dtypes of its parameters)": structure(run.params),
        "data set": [structure(inputs.data), digest(inputs.data)],
        "batch_size": plan.batch_size,
        "sampling": plan.sampling,
        "key": as_numpy(inputs.key).tolist(),
        "tolerance or params_tolerance": [
            float(limits.tolerance),
            float(limits.params_tolerance),
        ],
        "loss_fn": program_digest(plan.loss_fn, run.params, batch),
        "optimizer": [structure(run.opt_state), step],
        "validation_data": [structure(inputs.validation), digest(inputs.validation)],
        "metrics": [name for name, _ in plan.metrics],
        "start (params or opt_state)": digest(given),
    }


def digest(tree: Any) -> str:
    """A digest of all numbers in a tree of arrays."""
    hashed = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        # A memoryview cannot be cast where an extent is 0.
        hashed.update(np.ascontiguousarray(as_numpy(leaf)).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def structure(tree: Any) -> list[str]:
    """The path, dtype and shape of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]


def program_digest(function: Callable[..., Any], *args: Any) -> str:
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


def as_numpy(array: Any) -> np.ndarray:
    """An array's numbers, also a typed key's."""
    array = jnp.asarray(array)
    typed = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if typed else array)
