"""Makes records in this process, or in several, each on a core of its own."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.dao_e import study
from benchmarks.dao_e.study import Plan, Unit
from benchmarks.runs import kept_in


def make_all(units: Sequence[Unit], plan: Plan, workers: int) -> None:
    """Makes the records that are missing.

    Raises:
      Interrupted: on Ctrl-C; finished records are kept.
    """
    # The heavy tasks are the last ones of the table, and at the end they would wait alone.
    todo = [unit for unit in reversed(units) if not study.is_finished(unit, plan)]
    if not todo:
        return
    bar = tqdm(total=len(todo), unit="record", dynamic_ncols=True, disable=None)
    with kept_in(plan.folder), bar:
        if workers == 1:
            for unit in todo:
                _show(bar, unit)
                study.make(unit, plan)
                bar.update()
        else:
            _in_processes(todo, plan, workers, bar)


def _in_processes(todo: Sequence[Unit], plan: Plan, workers: int, bar: tqdm) -> None:
    context = multiprocessing.get_context("spawn")  # a forked JAX hangs
    number = context.Value("i", 0)
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_pin, initargs=(number,)
    ) as pool:
        futures = {pool.submit(study.make, unit, plan): unit for unit in todo}
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                _show(bar, futures[future])
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _pin(number: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    """Gives this process one core, before JAX counts its threads by them."""
    with number.get_lock():
        place = number.value
        number.value += 1
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[place % len(cores)]})


def _show(bar: tqdm, unit: Unit) -> None:
    bar.set_postfix_str(f"{unit.task} {unit.arm}{' (tuning)' if unit.tuning else ''}")
