"""Calls the compiled program until a run ends, and finds its last finite state."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from optabs._extras import can_show_progress, require
from optabs.training import batches
from optabs.training.checkpoints import Checkpoints
from optabs.training.program import (
    LOSS_NOT_FINITE,
    RUNNING,
    Inputs,
    Limits,
    Plan,
    Run,
    advance,
    all_finite,
    copy,
)

CALL_SECONDS = 1.0  # of compiled work between two looks at the clock, the bar and Ctrl-C
GROWTH = 8  # at the most, of the steps from one call to the next

Rows = dict[str, list[float]]  # a column per name, a row per finished epoch
Begin = Callable[[int], tuple[Run, Rows]]  # the run again, from at most this step


class Ending(NamedTuple):
    """Where a training stopped."""

    run: Run
    rows: Rows
    finite_at: int | None  # a step at which all was finite, where it no longer is


def train(
    plan: Plan,
    run: Run,
    rows: Rows,
    *,
    inputs: Inputs,
    limits: Limits,
    progress: bool | None = False,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 0.0,
) -> "Ending":
    """Trains to a limit, a convergence test, or what is not finite; `rows` grow in place."""
    saved_at = time.monotonic()
    steps, warm = 1, False  # the first call compiles
    here = _place(run)
    watched = here.finite  # parameters that never were finite may be meant so
    with _Bar(plan, here, inputs, limits, progress) as bar:
        while not _ended(here, limits):
            started = time.monotonic()
            bound = limits._replace(step=min(limits.step, here.step + steps))
            run, table = advance(plan, run, inputs, bound)
            before, here = here, _place(run)
            for name, column in jax.device_get(table).items():
                rows[name].extend(column[: here.epoch - before.epoch].tolist())
            if here.status == LOSS_NOT_FINITE or (watched and not here.finite):
                return Ending(run, rows, before.step)
            if warm:
                pace = CALL_SECONDS / max(time.monotonic() - started, 1e-9)
                steps = max(1, int(steps * min(pace, GROWTH)))
            warm = True
            bar.show(here, rows)
            due = time.monotonic() - saved_at >= checkpoint_seconds
            if checkpoints and (due or _ended(here, limits)):
                checkpoints.save(here.step, run, rows)
                saved_at = time.monotonic()
    return Ending(run, rows, None)


def last_good(
    plan: Plan, begin: Begin, ending: Ending, inputs: Inputs, limits: Limits
) -> tuple[Run, Rows]:
    """Makes a run once more, up to where its loss and its parameters were last finite.

    To keep that state in every step would cost a copy of it in every step.
    """
    run, rows, finite_at = ending
    while finite_at is not None and int(run.status) == LOSS_NOT_FINITE:
        good = max(0, int(run.step) - 1)  # where the last finite loss was taken
        run, rows, finite_at = train(
            plan, *begin(good), inputs=inputs, limits=limits._replace(step=good)
        )
    if finite_at is None:
        return run, rows
    # A gradient that was not finite, under a loss that was: look for its step.
    bad = int(run.step)
    ending = train(
        plan, *begin(finite_at), inputs=inputs, limits=limits._replace(step=finite_at)
    )
    run, rows = ending.run, ending.rows
    for step in range(finite_at + 1, bad + 1):
        kept = copy(run), {name: list(column) for name, column in rows.items()}
        run, rows, lost_at = train(
            plan, run, rows, inputs=inputs, limits=limits._replace(step=step)
        )
        if lost_at is not None:
            return kept
    return run, rows


class _Place(NamedTuple):
    step: int
    epoch: int
    position: int
    status: int
    loss_sum: float
    finite: bool


def _place(run: Run) -> _Place:
    """Where a run is, in one transfer."""
    finite = all_finite(run.params)
    arrays = run.step, run.epoch, run.position, run.status, run.loss_sum, finite
    return _Place(*(value.item() for value in jax.device_get(arrays)))


def _ended(here: _Place, limits: Limits) -> bool:
    return here.status != RUNNING or here.epoch >= limits.epochs or here.step >= limits.step


class _Bar:
    """Steps made, the loss and the time left, where there is someone to see them."""

    def __init__(
        self,
        plan: Plan,
        here: _Place,
        inputs: Inputs,
        limits: Limits,
        progress: bool | None,
    ) -> None:
        self._bar = None
        if progress is None:
            progress = can_show_progress()
        if progress:
            count = batches.instances(inputs.data)
            full, short = batches.sizes(count, plan.batch_size, plan.sampling)
            self._bar = require("tqdm", "training", "progress").tqdm(
                total=min(limits.step, limits.epochs * (full + (short > 0))),
                initial=here.step,
                unit="step",
                dynamic_ncols=True,
            )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, here: _Place, rows: Rows) -> None:
        """Moves the bar to where the run is."""
        if self._bar is not None:
            if not (here.position or rows["loss"]):
                return
            within = here.loss_sum / here.position if here.position else rows["loss"][-1]
            self._bar.set_postfix_str(f"loss {within:.4g}", refresh=False)
            self._bar.update(here.step - self._bar.n)
