"""The command `gadam`: a population against independent runs of Adam."""

import pathlib
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Annotated

import typer
from tqdm import tqdm

from benchmarks import store
from benchmarks.gadam import peer_study, report, study
from benchmarks.gadam.arms import FUNCTION_ARMS
from benchmarks.gadam.functions import FUNCTIONS
from benchmarks.gadam.processes import launch
from benchmarks.gadam.study import Plan, Unit
from benchmarks.gadam.tasks import CONDITIONS, NETWORKS
from benchmarks.lab.arguments import ArgumentError, DataOption, names_of, numbers_of, positive
from benchmarks.runs import kept_in

RESULTS = pathlib.Path("runs/gadam")
DIMENSIONS = "2,10,30,100"
QUICK_STEPS, QUICK_EPOCHS, QUICK_SEEDS = 100, 10, 2  # the least for every arm


def gadam(
    functions: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(FUNCTIONS)}; none: no function")
    ] = "",
    dimensions: Annotated[str, typer.Option(help="of the functions")] = DIMENSIONS,
    conditions: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(CONDITIONS)}")
    ] = "",
    networks: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(NETWORKS)}; none: no network")
    ] = "",
    data: DataOption = None,
    arms: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(FUNCTION_ARMS)}; all: the variants tried, too; or some"
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(help="reported runs of each arm")] = 10,
    steps: Annotated[
        int | None, typer.Option(help="of each unit on a function, in place of 2000")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="of each unit on a network's data, in place of 40")
    ] = None,
    processes: Annotated[
        int, typer.Option(help="no study: one run on so many processes; 0: the study")
    ] = 0,
    peers: Annotated[
        bool, typer.Option("--peers", help="evosax's methods at equal time, after the arms")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="few steps, 2 seeds")] = False,
    only_report: Annotated[
        bool, typer.Option("--report", help="from the records that are there")
    ] = False,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Gadam against the best of independent Adam runs, on functions and small networks.

    Every arm has as many gradient evaluations and rates, chosen on seeds that are not
    reported. Finished records are kept; the same call goes on where it was interrupted.
    """
    if processes:
        positive(processes, "processes")
        record = store.prepare_folder(out) / "spread" / f"{processes}.json"
        command = [sys.executable, "-m", "benchmarks.gadam.spread", str(record)]
        launch(command, processes=processes)
        return
    if quick:
        steps = QUICK_STEPS if steps is None else steps
        epochs = QUICK_EPOCHS if epochs is None else epochs
        seeds = min(seeds, QUICK_SEEDS)
    for name, number in (("steps", steps), ("epochs", epochs)):
        if number is not None:
            _enough(number, name)
    tasks = [
        study.name_of(function, size, condition)
        for size in numbers_of(dimensions, "dimensions")
        for condition in _names(conditions, "conditions", CONDITIONS)
        for function in _names(functions, "functions", FUNCTIONS)
    ]
    tasks += _networks(networks, data)
    if not tasks:
        raise ArgumentError("functions and networks are both none; pass some of either.")
    plan = Plan(
        tuple(tasks), positive(seeds, "seeds"), store.prepare_folder(out), data, steps, epochs
    )
    units = _units(plan, arms)
    methods = peer_study.units_of(plan) if peers else []
    if not only_report:
        _make_all(units, plan, study)
        _make_all(methods, plan, peer_study)
    report.write(out)
    typer.echo(f"tables and pictures: {out}")


def _names(text: str, name: str, known: Collection[str]) -> list[str]:
    if text == "none":
        return []
    return names_of(text or ",".join(known), name, known)


def _networks(text: str, data: pathlib.Path | None) -> list[str]:
    """The networks that are asked for; of all, those for which there are data."""
    names = _names(text, "networks", NETWORKS)
    if "mnist" not in names or data is not None:
        return names
    if text:
        raise ArgumentError("networks has mnist, which needs images; pass data, too.")
    typer.echo("Left out, since it needs images (pass --data): mnist")
    return [name for name in names if name != "mnist"]


def _enough(number: int, name: str) -> None:
    least = {"steps": QUICK_STEPS, "epochs": QUICK_EPOCHS}[name]
    if number < least:
        raise ArgumentError(
            f"{name} is {number}, too few for a generation of every arm; pass {least} or more."
        )


def _units(plan: Plan, text: str) -> list[Unit]:
    """The records of a plan; an arm that only networks have is made on networks alone."""
    known = dict.fromkeys(name for task in plan.tasks for name in study.arms_of(task))
    every = ",".join(known) if text == "all" else text or ",".join(FUNCTION_ARMS)
    wanted = names_of(every, "arms", known)
    return [
        Unit(task, arm) for task in plan.tasks for arm in study.arms_of(task) if arm in wanted
    ]


def _make_all(units: list[Unit], plan: Plan, maker: ModuleType) -> None:
    """Makes the records that are missing."""
    todo = [unit for unit in units if not maker.is_finished(unit, plan)]
    bar = tqdm(todo, unit="record", dynamic_ncols=True, disable=None)
    with kept_in(plan.folder), bar:
        for unit in bar:
            bar.set_postfix_str(f"{unit.task} {unit.arm}")
            maker.make(unit, plan)
