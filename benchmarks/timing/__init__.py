"""Times of steps, compilations, epochs and populations; contenders in turns in one run."""

from collections.abc import Iterable
from typing import Annotated

import typer

from benchmarks.lab import arguments as given
from benchmarks.lab import report
from benchmarks.lab.records import opened
from benchmarks.lab.study import Unit, run_units
from benchmarks.lab.timing import FULL, STATES
from benchmarks.timing import programs, steps, tables

SUBJECTS = {  # rounds, title, and tables of the records
    "step": (15, "One step", tables.step_sections),
    "dao_e": (15, "One step of DAO-E", tables.mixture_sections),
    "compile": (3, "Compiling a step", tables.compile_sections),
    "epoch": (5, "An epoch, beside PyTorch", tables.epoch_sections),
    "fit": (9, "An epoch through fit, beside a loop by hand", tables.fit_sections),
    "population": (7, "A population", tables.population_sections),
}


def command(
    subject: Annotated[str, typer.Argument(help=f"one of {', '.join(SUBJECTS)}")] = "",
    sizes: Annotated[
        str, typer.Option(help="of step and dao_e: all, or some, such as 1e4,resnet18")
    ] = "all",
    optimizers: Annotated[
        str, typer.Option(help=f"of step: all, or some of {', '.join(steps.OURS)}")
    ] = "all",
    state: Annotated[
        str, typer.Option(help=f"of step, of its moments: {FULL} or {', '.join(STATES)}")
    ] = FULL,
    data: given.DataOption = None,
    quick: given.QuickOption = False,
    only_report: given.ReportOption = False,
    out: given.OutOption = None,
) -> None:
    """Times of steps, compilations, epochs and populations; contenders in turns in one run.

    step: each optimizer's beside optax's and a copy, AdamW's beside PyTorch's where that is
    installed; 1e8 parameters take 6 GB, and 1e9, which has to be named, 60 GB.
    dao_e: beside Adam's and its experts', and inside the training of networks.
    compile: fresh compilations of a step, by the number of small arrays.
    epoch: of MNIST, MLP 784-256-128-10, Adam: in JAX and in PyTorch.
    fit: an epoch of digits through optabs.fit, and one of a lax.scan by hand.
    population: MLPs on digits together, one by one, and what evolving adds.

    What has a record of the same settings in the folder is not timed again.
    """
    units: Iterable[Unit] = []
    if not only_report:
        names = given.some_of(optimizers, "optimizers", steps.OURS)
        given.choice_of(state, "state", (FULL, *STATES))
        given.choice_of(subject, "subject", SUBJECTS)
        chosen = given.some_of(sizes, "sizes", steps.SIZES.get(subject, ()))
        if sizes in ("", "all"):
            chosen = [each for each in chosen if each != steps.LARGEST]
        rounds = 1 if quick else SUBJECTS[subject][0]
        units = {
            "step": lambda: steps.step_units(chosen, names, state, rounds),
            "dao_e": lambda: steps.step_units(chosen, [steps.DAO_E], FULL, rounds),
            "compile": lambda: steps.compile_units(rounds),
            "epoch": lambda: programs.epoch_units(data, rounds),
            "fit": lambda: programs.fit_units(rounds),
            "population": lambda: programs.population_units(rounds),
        }[subject]()
    records = opened("timing", out, only_report=only_report, quick=quick)
    run_units(list(units)[: 1 if quick else None], records)
    sections: list[report.Table | str] = []
    for kind, (_, title, sections_of) in SUBJECTS.items():
        if records.select(kind=kind):
            sections += [f"## {title}\n", *sections_of(records)]
    report.write(records.folder, "Times", sections)
