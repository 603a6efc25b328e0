"""Checkpoints of one run through orbax: written whole or not at all, read by that run only."""

import json
import os
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from optabs._checks import cut, require, short

KEPT = 2  # one before the newest, should that be damaged
PREFIX = "step"  # other folders beside the checkpoints are not ours to read or remove


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
                    named = self._orbax.args.StandardRestore(_by_number(like))
                    arrays = self._read(manager, step, arrays=named)
                except _AnotherRun as difference:
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
                return _like(arrays, like), notes["notes"]
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
            _wait_for_all(f"optabs set checkpoints aside from {step}")
            with self._manager() as manager:
                manager.save(
                    step,
                    args=args.Composite(
                        arrays=args.StandardSave(_by_number(arrays)),
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
        for path in self._folder.glob(f"{PREFIX}_*"):
            number = path.name.removeprefix(f"{PREFIX}_")
            if number.isdecimal() and int(number) >= step:
                path.rename(path.with_name(f"unread_{path.name}_{time.time_ns()}"))

    def _manager(self) -> Any:
        options = self._orbax.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False, step_prefix=PREFIX
        )
        return self._orbax.CheckpointManager(self._folder, options=options)

    def _read(self, manager: Any, step: int, **item: Any) -> Any:
        (name,) = item
        return manager.restore(step, args=self._orbax.args.Composite(**item))[name]

    def _compare(self, found: dict[str, Any]) -> None:
        for name, value in self._identity.items():
            if found.get(name) != value:
                raise _AnotherRun(
                    f"checkpoint_dir {str(self._folder)!r} holds a run with another {name}; "
                    "pass another folder, or what that run was given."
                )


def _wait_for_all(name: str) -> None:
    """Where there are several processes, which read one folder, until all are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class _AnotherRun(Exception):
    pass


def _by_number(tree: Any) -> dict[str, jax.Array]:
    # Numbered leaves need no knowledge of the tree's node types to be read again, and orbax
    # refuses arrays without entries.
    leaves = jax.tree.leaves(tree)
    return {str(number): leaf for number, leaf in enumerate(leaves) if leaf.size}


def _like(numbered: dict[str, jax.Array], tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    found = [numbered.get(str(number), leaf) for number, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, found)
