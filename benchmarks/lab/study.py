"""The runner of every study: rates from one grid, one loop, one report."""

import concurrent.futures
import functools
import importlib
import itertools
import math
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import numpy as np
import typer
from tqdm import tqdm

from benchmarks.lab import report
from benchmarks.lab.arguments import (
    ArgumentError,
    DataOption,
    OutOption,
    QuickOption,
    ReportOption,
    StepsOption,
    WorkersOption,
    positive,
    some_of,
    tasks_of,
)
from benchmarks.lab.records import Key, Records, prepare_folder, record_of, rounded
from benchmarks.lab.training import (
    Arm,
    Program,
    Task,
    curves_of,
    measures_of,
    program_of,
    state_bytes,
)

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

    @property
    def at_edge(self) -> bool:
        """Whether no rate beyond the best one was tried on one side."""
        return self.best in (self.rates[0], self.rates[-1])

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
    places = list(range(grid.first, grid.last + 1))
    tried = dict(zip(places, np.asarray(losses_of(grid.rates), float), strict=True))
    while True:
        places = sorted(tried)
        found = Tuning([half_decade(place) for place in places],
                       np.stack([tried[place] for place in places]))  # fmt: skip
        best = places[int(np.argmin(found.losses.mean(1)))]
        if best == places[0] and best > grid.first - FURTHEST:
            further = best - 1
        elif best == places[-1] and best < grid.last + FURTHEST:
            further = best + 1
        else:
            return found
        tried[further] = np.asarray(losses_of([half_decade(further)]), float)[0]


def tuned(program: Program, grid: Grid, measure: str = "validation_loss") -> Tuning:
    """The best rate of a program by a measure on TUNING_SEEDS, infinite if it diverged."""

    def loss_of(rate: float, seed: int) -> float:
        measures = measures_of(program(rate, seed))
        return math.inf if measures["diverged"] else measures[measure]

    return tune(
        lambda rates: np.array(
            [[loss_of(rate, seed) for seed in TUNING_SEEDS] for rate in rates]
        ),
        grid,
    )


class Unit(NamedTuple):
    """Records that are made together, by one compiled program."""

    keys: tuple[Key, ...]
    config: Mapping[str, Any]
    make: Callable[[Sequence[Key], Mapping[Key, Any]], Iterable[tuple[Key, Mapping[str, Any]]]]
    """From the keys that are missing, and the results of the others, to each missing one's
    result, as soon as it is there. It is pickled where there are several workers."""

    def missing(self, records: Records) -> list[Key]:
        """The keys that have no record of this configuration."""
        return [key for key in self.keys if not records.finished(key, self.config)]

    def done(self, records: Records) -> dict[Key, Any]:
        """The results of the keys that have one."""
        found = {key: records.get(key) for key in self.keys}
        return {
            key: record.result
            for key, record in found.items()
            if record is not None and records.finished(key, self.config)
        }


def unit_of(
    key: Key, config: Mapping[str, Any], make: Callable[..., Mapping[str, Any]]
) -> Unit:
    """One record, which one call makes; what is asked for are its keyword arguments."""
    return Unit((key,), config, lambda missing, done: [(key, make(**config))])


def run_units(units: Sequence[Unit], records: Records, *, workers: int = 1) -> None:
    """Makes the records that are missing, each kept as soon as it is there.

    A bar shows how many are left and an estimate of the time.

    Args:
      units: what is wanted.
      records: where to.
      workers: processes, each on a core of its own; 1 for this one.

    Raises:
      Interrupted: on Ctrl-C; finished records are kept.
    """
    todo = [
        (unit, missing, unit.done(records))
        for unit in units
        if (missing := unit.missing(records))
    ]
    total = sum(len(missing) for _, missing, _ in todo)
    bar = tqdm(total=total, unit="run", dynamic_ncols=True, disable=None)

    def keep(unit: Unit, key: Key, result: Mapping[str, Any]) -> None:
        records.add(record_of(key, unit.config, result))
        bar.set_postfix_str(" ".join(filter(None, (key.task, key.setting, key.arm))))
        bar.update()

    try:
        with bar:
            if workers == 1:
                for unit, missing, done in todo:
                    for key, result in unit.make(missing, done):
                        keep(unit, key, result)
                    jax.clear_caches()
            else:
                _in_processes(todo, keep, workers)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped; finished runs are kept in {str(records.folder)!r}, and the same call "
            "goes on from there."
        ) from None
    finally:
        records.close()


def _in_processes(
    todo: Sequence[tuple[Unit, list[Key], dict[Key, Any]]],
    keep: Callable[..., None],
    workers: int,
) -> None:
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
            raise


def _made(
    unit: Unit, missing: Sequence[Key], done: Mapping[Key, Any]
) -> list[tuple[Key, Mapping[str, Any]]]:
    made = list(unit.make(missing, done))
    jax.clear_caches()
    return made


def _pin(number: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    """Gives this process one core, before JAX counts its threads by them."""
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
    tasks: Mapping[str, Callable[[pathlib.Path | None], Task]]  # from the folder of images
    arms: Mapping[str, Arm]
    bars: Callable[[Records], Sequence[report.Bar]] = lambda records: ()
    grid: Grid = Grid()
    measures: Mapping[str, report.Measure] = report.MEASURES
    need_images: Collection[str] = ()  # tasks that read the folder of images
    module: str = ""  # `__name__` of the file that has it as STUDY, for several workers
    rate: float | None = None  # of every arm, where none is chosen from the grid
    # What else each task is trained under, by name: a batch size, a schedule.
    settings: Mapping[str, Callable[[Task], Task]] = {"": lambda task: task}
    downloads: bool = False  # whether tasks that are named fetch images, where none are given
    test: bool = True  # whether the reported runs are scored on the test data
    sections: Callable[[Records], Sequence[report.Table | str]] | None = None
    """Of the README, in place of a table a task; the bars follow."""
    figures: Callable[[Records], Mapping[str, "Figure"]] = lambda records: {}
    timings: Callable[[Sequence[tuple[str, Task]], Sequence[str]], list[Unit]] | None = None
    """From tasks and names of arms to units that are made first, by one process."""

    def __reduce__(self) -> Any:
        if not self.module:
            raise ArgumentError(f"study {self.name!r} has no module; leave workers at 1.")
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
        """One for each arm on each task: its tuning, if it has no rate, and its runs.

        Args:
          tasks: names of tasks, each under every setting.
          arms: names of arms.
          seeds: how many are reported.
          steps: in place of each task's own number.
          source: the folder of images.
        """
        chosen: dict[str, Any] = {"rate": self.rate}
        if self.rate is None:
            chosen = {"grid": self.grid.rates, "tuning_seeds": TUNING_SEEDS}
        units = []
        for name, setting in itertools.product(tasks, self.settings):
            task = self.task(name, source, steps, setting)
            for arm in arms:
                label = self.arms[arm].label
                config = {"title": task.title, "label": label, "steps": task.steps, **chosen}
                keys = [Key(name, arm, setting, seed=seed) for seed in range(seeds)]
                if self.rate is None:
                    keys.insert(0, Key(name, arm, setting, "tuning"))
                make = functools.partial(_trained, self, name, setting, arm, source, steps)
                units.append(Unit(tuple(keys), config, make))
        return units

    def tables(self, records: Records) -> list[report.Table]:
        """A table a task: its arms with their rates, their bytes of state and measures."""
        return [
            report.comparison(records, task, list(self.arms), self.measures)
            for task in self.tasks
            if records.select(task=task)
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
    name: str,
    setting: str,
    arm_name: str,
    source: pathlib.Path | None,
    steps: int | None,
    missing: Sequence[Key],
    done: Mapping[Key, Any],
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Tunes the rate, then trains the missing seeds; the test data are seen then."""
    task, arm = study.task(name, source, steps, setting), study.arms[arm_name]
    program = program_of(task, arm, test=study.test)
    tuning_key = Key(name, arm_name, setting, "tuning")
    if study.rate is not None:
        best = study.rate
    elif tuning_key in done:
        best = done[tuning_key]["best"]
    else:
        tuning = tuned(program, study.grid)
        best = tuning.best
        yield tuning_key, tuning.result() | {"bytes": state_bytes(task, arm)}
    for key in missing:
        if key != tuning_key:
            assert key.seed is not None
            outcome = program(best, key.seed)
            curves = curves_of(outcome, task.points)
            yield key, {"rate": best, **measures_of(outcome), "curves": curves}


def command_of(study: Study) -> Callable[..., None]:
    """The command line of a study."""
    separator = ";" if any("," in arm for arm in study.arms) else ","

    def command(
        tasks: Annotated[
            str, typer.Option(help=f"all, or some of {', '.join(study.tasks)}")
        ] = "",
        arms: Annotated[
            str, typer.Option(help=f"all, or some of {f'{separator} '.join(study.arms)}")
        ] = "all",
        seeds: Annotated[int, typer.Option(help="reported runs of each arm")] = 5,
        steps: StepsOption = None,
        data: DataOption = None,
        workers: WorkersOption = 1,
        quick: QuickOption = False,
        only_report: ReportOption = False,
        out: OutOption = None,
    ) -> None:
        names = some_of(arms, "arms", study.arms, separator=separator)
        chosen = []
        if not only_report:
            needy = () if study.downloads and tasks else study.need_images
            chosen = tasks_of(tasks, study.tasks, needy, data)
        if quick:
            chosen, seeds, steps = chosen[:1], min(seeds, 2), steps or QUICK_STEPS
        if steps is not None:
            positive(steps, "steps")
        positive(seeds, "seeds")
        positive(workers, "workers")
        records = Records(prepare_folder(out or pathlib.Path("runs") / study.name))
        if not only_report:
            if study.timings is not None:
                whole = [(name, study.task(name, data, steps)) for name in chosen]
                run_units(study.timings(whole, names), records)
            units = study.units(chosen, names, seeds=seeds, steps=steps, source=data)
            run_units(units, records, workers=workers)
        study.report(records)

    command.__name__, command.__doc__ = study.name, study.doc
    return command
