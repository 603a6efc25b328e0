"""The runner of every study: rates from one grid, one loop, one report."""

import concurrent.futures
import functools
import importlib
import itertools
import math
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import jax
import numpy as np
import typer
from tqdm import tqdm

from benchmarks.lab import arguments as given
from benchmarks.lab import report, training
from benchmarks.lab.records import Key, Records, opened, plain, record_of, rounded
from benchmarks.lab.training import Arm, Program, Task, curves_of, measures_of, program_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One set for all studies; the reported seeds count from 0. Three, so that one odd start does
# not choose a rate.
TUNING_SEEDS = (1_000_000, 1_000_001, 1_000_002)
FURTHEST = 5  # half decades tried beyond an end of the grid
QUICK_STEPS = 40  # of a run with --quick, which shows that everything works and no more


class Interrupted(Exception):
    """Ctrl-C between or inside runs; what was finished is kept."""


def half_decade(place: int) -> float:
    """The rate 10^(place/2), rounded."""
    return float(f"{10 ** (place / 2):.3g}")


class Grid(NamedTuple):
    """Rates half a decade apart, the same for every arm of a study."""

    first: int = -8  # 1e-4
    last: int = 0  # 1

    @property
    def rates(self) -> list[float]:
        """From the lowest to the highest."""
        return [half_decade(place) for place in range(self.first, self.last + 1)]


class Tuning(NamedTuple):
    """The rates tried, ascending, and what each seed gave."""

    rates: list[float]
    losses: np.ndarray  # float [rates, seeds]; infinite where a run diverged

    @property
    def best(self) -> float:
        """The rate of the lowest mean; of equal ones, the smallest."""
        return self.rates[int(np.argmin(self.losses.mean(1)))]

    def result(self) -> dict[str, Any]:
        """For a record."""
        losses = rounded(self.losses)
        return {"best": self.best, "rates": self.rates, "losses": losses}


def tune(losses_of: Callable[[Sequence[float]], np.ndarray], grid: Grid) -> Tuning:
    """Tries the grid and, while the best rate is at an end, one rate beyond it.

    Args:
      losses_of: from rates to losses, float [rates, seeds], infinite where a run diverged.
      grid: of half decades; up to FURTHEST beyond either end are tried.
    """
    tried: dict[int, np.ndarray] = {}
    wanted = range(grid.first, grid.last + 1)
    while True:
        losses = np.asarray(losses_of([half_decade(place) for place in wanted]), float)
        tried |= zip(wanted, losses, strict=True)
        places = sorted(tried)
        rates = [half_decade(place) for place in places]
        found = Tuning(rates, np.stack([tried[place] for place in places]))
        best = places[rates.index(found.best)]
        if best == places[0] and best > grid.first - FURTHEST:
            wanted = range(best - 1, best)
        elif best == places[-1] and best < grid.last + FURTHEST:
            wanted = range(best + 1, best + 2)
        else:
            return found


def tuned(program: Program, grid: Grid, seeds: Sequence[int] = TUNING_SEEDS) -> Tuning:
    """The best rate of a program by the validation loss, infinite where it diverged."""

    def losses_of(rates: Sequence[float]) -> np.ndarray:
        runs = [measures_of(program(*pair)) for pair in itertools.product(rates, seeds)]
        losses = [math.inf if run["diverged"] else run["validation_loss"] for run in runs]
        return np.reshape(losses, (len(rates), -1))

    return tune(losses_of, grid)


Made: TypeAlias = Iterable[tuple[Key, Mapping[str, Any]]]


class Unit(NamedTuple):
    """Records that are made together, by one compiled program."""

    keys: tuple[Key, ...]
    config: Mapping[str, Any]
    make: Callable[[Sequence[Key], Mapping[Key, Any]], Made]
    """From the keys that are missing, and the results of the others, to each missing one's
    result, as soon as it is there. It is pickled where there are several workers."""

    def done(self, records: Records) -> dict[Key, Any]:
        """The results of the keys that have a record of this configuration."""
        config = plain(self.config)
        found = [record for key in self.keys if (record := records.get(key))]
        return {each.key: each.result for each in found if each.config == config}

    def missing(self, records: Records) -> list[Key]:
        """The other keys."""
        done = self.done(records)
        return [key for key in self.keys if key not in done]


def run_units(units: Sequence[Unit], records: Records, *, workers: int = 1) -> None:
    """Makes the records that are missing, each kept as soon as it is there.

    A bar shows how many are left and an estimate of the time. Several workers are processes,
    each on a core of its own. Raises Interrupted on Ctrl-C.
    """
    try:
        with records.locked():
            _run(units, records, workers)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped; finished runs are kept in {str(records.folder)!r}, and the same call "
            "goes on from there."
        ) from None


def _run(units: Sequence[Unit], records: Records, workers: int) -> None:
    todo = [
        (unit, missing, unit.done(records))
        for unit in units
        if (missing := unit.missing(records))
    ]
    total = sum(len(missing) for _, missing, _ in todo)
    bar = tqdm(total=total, unit="run", dynamic_ncols=True, disable=None if todo else True)

    def keep(unit: Unit, key: Key, result: Mapping[str, Any]) -> None:
        records.add(record_of(key, unit.config, result))
        bar.set_postfix_str(" ".join(filter(None, (key.task, key.setting, key.arm))))
        bar.update()

    with bar:
        if workers > 1:
            _in_processes(todo, keep, workers)
            return
        for unit, missing, done in todo:
            for key, result in unit.make(missing, done):
                keep(unit, key, result)
            jax.clear_caches()


def _in_processes(todo: Sequence[Any], keep: Callable[..., None], workers: int) -> None:
    context = multiprocessing.get_context("spawn")  # a forked JAX hangs
    number = context.Value("i", 0)
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_pin, initargs=(number,)
    ) as pool:
        # The heavy tasks are the last ones of a study, and at the end they would wait alone.
        futures = {pool.submit(_made, *each): each[0] for each in reversed(todo)}
        try:
            for future in concurrent.futures.as_completed(futures):
                for key, result in future.result():
                    keep(futures[future], key, result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # else a second Ctrl-C waits for it for ever
            raise


def _made(unit: Unit, missing: Sequence[Key], done: Mapping[Key, Any]) -> list[Any]:
    made = list(unit.make(missing, done))
    jax.clear_caches()
    return made


def _pin(number: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    """Gives this process one core, before JAX counts its threads by them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    with number.get_lock():
        place = number.value
        number.value += 1
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[place % len(cores)]})


class Study(NamedTuple):
    """What is tried and what is claimed: arms on tasks, each at its best rate of one grid."""

    name: str  # of the command and of its folder
    doc: str  # one line for the command's help
    module: str  # `__name__` of the file that has it as STUDY
    tasks: Mapping[str, Callable[[pathlib.Path | None], Task]]  # from the folder of images
    arms: Mapping[str, Arm]
    peers: Collection[str] = ()  # arms of other libraries, trained only where they are named
    bars: Callable[[Records], Sequence[report.Bar]] = lambda records: ()
    grid: Grid = Grid()
    need_images: Collection[str] = ()  # tasks that read the folder of images
    rate: float | None = None  # of every arm, where none is chosen from the grid
    # What else each task is trained under, by name: a batch size, a schedule.
    settings: Mapping[str, Callable[[Task], Task]] = {"": lambda task: task}
    test: bool = True  # whether the reported runs are scored on the test data
    sections: Callable[[Records], Sequence[report.Table | str]] | None = None
    """Of the README, in place of a table a task; the bars follow."""
    figures: Callable[[Records], Mapping[str, "Figure"]] = lambda records: {}
    timings: Callable[[Sequence[tuple[str, Task]], Sequence[str]], list[Unit]] | None = None
    """From tasks and names of arms to units that are made first, by one process."""

    def __reduce__(self) -> Any:
        return _study_in, (self.module,)

    def task(
        self, name: str, source: pathlib.Path | None, steps: int | None, setting: str = ""
    ) -> Task:
        """A task under a setting, with another number of steps where one is given."""
        task = self.settings[setting](self.tasks[name](source))
        return task if steps is None else task._replace(steps=steps)

    def units(
        self,
        tasks: Sequence[str],
        arms: Sequence[str],
        *,
        seeds: int = 5,
        steps: int | None = None,
        source: pathlib.Path | None = None,
    ) -> list[Unit]:
        """Of each arm on each task and setting: its tuning, if it has no rate, and runs."""
        chosen: dict[str, Any] = {"rate": self.rate}
        if self.rate is None:
            chosen = {"grid": self.grid.rates, "tuning_seeds": TUNING_SEEDS}
        units = []
        for name, setting in itertools.product(tasks, self.settings):
            task = self.task(name, source, steps, setting)
            for arm in arms:
                label = self.arms[arm].label
                config = {"title": task.title, "label": label, "steps": task.steps, **chosen}
                tuning = Key(name, arm, setting, "tuning")
                runs = [tuning._replace(kind="run", seed=seed) for seed in range(seeds)]
                keys = [tuning, *runs] if self.rate is None else runs
                make = functools.partial(_trained, self, tuning, source, steps)
                units.append(Unit(tuple(keys), config, make))
        return units

    def run(
        self,
        records: Records,
        tasks: Sequence[str],
        arms: Sequence[str],
        *,
        workers: int = 1,
        **asked: Any,
    ) -> None:
        """Makes the records that are missing."""
        for units in self.stages(records, tasks, arms, **asked):
            run_units(units, records, workers=workers)

    def stages(
        self, records: Records, tasks: Sequence[str], arms: Sequence[str], **asked: Any
    ) -> Iterator[list[Unit]]:
        """The units, those that depend on others' records after them."""
        yield self.units(tasks, arms, **asked)

    def tables(self, records: Records) -> list[report.Table]:
        """A table a task and setting: its arms' rates, bytes of state and measures."""
        return [
            report.comparison(records, *each, list(self.arms), report.MEASURES)
            for each in itertools.product(self.tasks, self.settings)
            if records.select(task=each[0], setting=each[1], kind="run")
        ]

    def report(self, records: Records) -> None:
        """Shows the tables and bars, and writes them into the records' folder."""
        sections = (self.sections or self.tables)(records)
        bars = report.bars_table(self.bars(records))
        report.write(records.folder, self.name, [*sections, *bars], self.figures(records))


def _study_in(module: str) -> Study:
    return importlib.import_module(module).STUDY


def _trained(
    study: Study,
    tuning: Key,
    source: pathlib.Path | None,
    steps: int | None,
    missing: Sequence[Key],
    done: Mapping[Key, Any],
) -> Made:
    """Tunes the rate, then trains the missing seeds; the test data are seen then."""
    task, arm = study.task(tuning.task, source, steps, tuning.setting), study.arms[tuning.arm]
    program = program_of(task, arm, test=study.test)
    best = study.rate
    if tuning in done:
        best = done[tuning]["best"]
    elif best is None:
        found = tuned(program, study.grid)
        best = found.best
        yield tuning, found.result() | {"bytes": training.state_bytes(task, arm)}
    for key in missing:
        if key.seed is not None:
            outcome = program(best, key.seed)
            curves = curves_of(outcome, task.points)
            yield key, {"rate": best, **measures_of(outcome), "curves": curves}


def command_of(study: Study) -> Callable[..., None]:
    """The command line of a study."""
    separator = ";" if any("," in arm for arm in study.arms) else ","
    all_tasks, all_arms = ", ".join(study.tasks), f"{separator} ".join(study.arms)
    all_settings = "; ".join(study.settings)

    def command(
        tasks: Annotated[str, typer.Option(help=f"all, or some of {all_tasks}")] = "",
        arms: Annotated[str, typer.Option(help=f"all, or some of {all_arms}")] = "all",
        settings: Annotated[
            str, typer.Option(help=f"all, or some of {all_settings}", hidden=not all_settings)
        ] = "all",
        seeds: Annotated[int, typer.Option(help="reported runs of each arm")] = 5,
        steps: given.StepsOption = None,
        data: given.DataOption = None,
        workers: given.WorkersOption = 1,
        quick: given.QuickOption = False,
        only_report: given.ReportOption = False,
        out: given.OutOption = None,
    ) -> None:
        names = given.some_of(arms, "arms", study.arms, separator=separator)
        if arms in ("", "all"):  # as some_of has it
            names = [name for name in names if name not in study.peers]
        kept = given.some_of(settings, "settings", study.settings, separator=";")
        selected = study._replace(settings={name: study.settings[name] for name in kept})
        needy = study.need_images
        chosen = [] if only_report else given.tasks_of(tasks, study.tasks, needy, data)
        if not chosen and not only_report:
            raise given.ArgumentError("tasks has none without images; pass data or name one.")
        if quick:
            chosen, seeds = chosen[:1], min(seeds, 2)
            names = names[: 2 if arms == "all" else None]
            steps = QUICK_STEPS if steps is None else steps
        if steps is not None:
            given.positive(steps, "steps")
        given.positive(seeds, "seeds")
        given.positive(workers, "workers")
        records = opened(study.name, out, only_report=only_report, quick=quick)
        if study.timings is not None:
            whole = [(name, study.task(name, data, steps)) for name in chosen]
            run_units(study.timings(whole, names), records)
        asked = {"seeds": seeds, "steps": steps, "source": data}
        selected.run(records, chosen, names, workers=workers, **asked)
        study.report(records)

    command.__name__, command.__doc__ = study.name, study.doc
    return command
