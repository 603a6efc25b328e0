"""Calls the compiled program until a run ends, and finds its last finite state."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from optabs._checks import can_show_progress, require
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
MAX_GROWTH = 8  # of the steps from one call to the next, since a short call's time is noisy

Rows = dict[str, list[float]]  # a column per name, a row per finished epoch
RestoreOrStart = Callable[[int], tuple[Run, Rows]]  # the run again, from at most this step


class Outcome(NamedTuple):
    """Where a training stopped."""

    run: Run
    rows: Rows
    last_finite_step: int | None  # seen before what is not finite; None where all is finite


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
) -> "Outcome":
    """Trains to a limit, a convergence test, or what is not finite; `rows` grow in place."""
    saved_at = time.monotonic()
    steps, warm = 1, False  # the first call compiles
    current = _fetch_progress(run)
    # Parameters that are not finite at the start, such as a mask of -inf, may be meant so.
    initially_finite = current.finite
    with _ProgressBar(plan, current, inputs, limits, progress) as bar:
        while not _finished(current, limits):
            started = time.monotonic()
            bound = limits._replace(step=min(limits.step, current.step + steps))
            run, table = advance(plan, run, inputs, bound)
            before, current = current, _fetch_progress(run)
            for name, column in jax.device_get(table).items():
                rows[name].extend(column[: current.epoch - before.epoch].tolist())
            if current.status == LOSS_NOT_FINITE or (initially_finite and not current.finite):
                return Outcome(run, rows, before.step)
            if warm:
                # The clock may stand still in a short call.
                pace = CALL_SECONDS / max(time.monotonic() - started, 1e-9)
                steps = max(1, int(steps * min(pace, MAX_GROWTH)))
            warm = True
            bar.show(current, rows)
            due = time.monotonic() - saved_at >= checkpoint_seconds
            if checkpoints and (due or _finished(current, limits)):
                checkpoints.save(current.step, run, rows)
                saved_at = time.monotonic()
    return Outcome(run, rows, None)


def last_finite_state(
    plan: Plan,
    restore_or_start: RestoreOrStart,
    outcome: Outcome,
    inputs: Inputs,
    limits: Limits,
) -> tuple[Run, Rows]:
    """Repeats a run up to where its loss and its parameters were last finite.

    To keep that state in every step would cost a copy of it in every step.
    """
    run, rows, last_finite_step = outcome
    while last_finite_step is not None and int(run.status) == LOSS_NOT_FINITE:
        good = max(0, int(run.step) - 1)  # where the last finite loss was taken
        run, rows, last_finite_step = train(
            plan, *restore_or_start(good), inputs=inputs, limits=limits._replace(step=good)
        )
    if last_finite_step is None:
        return run, rows
    # A gradient that was not finite, under a loss that was: look for its step.
    bad = int(run.step)
    outcome = train(
        plan,
        *restore_or_start(last_finite_step),
        inputs=inputs,
        limits=limits._replace(step=last_finite_step),
    )
    run, rows = outcome.run, outcome.rows
    for step in range(last_finite_step + 1, bad + 1):
        kept = copy(run), {name: list(column) for name, column in rows.items()}
        run, rows, lost_at = train(
            plan, run, rows, inputs=inputs, limits=limits._replace(step=step)
        )
        if lost_at is not None:
            return kept
    return run, rows


class _Progress(NamedTuple):
    step: int
    epoch: int
    position: int
    status: int
    loss_sum: float
    finite: bool


def _fetch_progress(run: Run) -> _Progress:
    """How far a run is, in one transfer."""
    finite = all_finite(run.params)
    arrays = run.step, run.epoch, run.position, run.status, run.loss_sum, finite
    return _Progress(*(value.item() for value in jax.device_get(arrays)))


def _finished(current: _Progress, limits: Limits) -> bool:
    return (
        current.status != RUNNING
        or current.epoch >= limits.epochs
        or current.step >= limits.step
    )


class _ProgressBar:
    """Steps made, the loss and the time left; `progress` None: on a terminal only."""

    def __init__(
        self,
        plan: Plan,
        current: _Progress,
        inputs: Inputs,
        limits: Limits,
        progress: bool | None,
    ) -> None:
        self._bar = None
        if progress is None:
            progress = can_show_progress()
        if progress:
            count = batches.num_instances(inputs.data)
            full, short = batches.split_epoch(count, plan.batch_size, plan.sampling)
            self._bar = require("tqdm", "training", "progress").tqdm(
                total=min(limits.step, limits.epochs * (full + (short > 0))),
                initial=current.step,
                unit="step",
                dynamic_ncols=True,
            )

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, current: _Progress, rows: Rows) -> None:
        """Moves the bar to where the run is."""
        if self._bar is not None:
            if not (current.position or rows["loss"]):
                return
            within = (
                current.loss_sum / current.position if current.position else rows["loss"][-1]
            )
            self._bar.set_postfix_str(f"loss {within:.4g}", refresh=False)
            self._bar.update(current.step - self._bar.n)
