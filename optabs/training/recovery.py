"""The last good state of a run that met a number that is not finite."""

from collections.abc import Callable

from optabs.training.loop import Ending, Rows, train
from optabs.training.program import LOSS_NOT_FINITE, Inputs, Limits, Plan, Run, copy

Begin = Callable[[int], tuple[Run, Rows]]  # the run again, from at most this step


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
