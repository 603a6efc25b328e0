"""Times of steps, compilations, epochs and populations; contenders in turns in one run."""

import pathlib
from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.lab import report, torch_peer
from benchmarks.lab.arguments import (
    ArgumentError,
    DataOption,
    OutOption,
    QuickOption,
    ReportOption,
    choice_of,
    positive,
    some_of,
)
from benchmarks.lab.records import Records, prepare_folder
from benchmarks.lab.study import Unit, run_units
from benchmarks.lab.timing import FULL, STATES
from benchmarks.timing import programs, steps, tables

RoundsOption = Annotated[int, typer.Option(help="measurements of each contender, in turns")]
SecondsOption = Annotated[
    float, typer.Option(help="per comparison; after these, only 3 rounds are completed")
]
SizesOption = Annotated[
    str,
    typer.Option(help=f"parameters in one array, or those of {' or '.join(steps.NETWORKS)}"),
]
SUBJECTS = {  # title and tables of each kind of records
    "step": ("One step", tables.step_sections),
    "dao_e": ("One step of DAO-E", tables.mixture_sections),
    "compile": ("Compiling a step", tables.compile_sections),
    "epoch": ("An epoch, beside PyTorch", tables.epoch_sections),
    "fit": ("An epoch through fit, beside a loop by hand", tables.fit_sections),
    "population": ("A population", tables.population_sections),
}

command = typer.Typer(
    invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False
)


@command.callback()
def timing(
    context: typer.Context, only_report: ReportOption = False, out: OutOption = None
) -> None:
    """Times of steps, compilations, epochs and populations; contenders in turns in one run.

    What has a record of the same settings in the folder of results is not timed again.
    """
    if context.invoked_subcommand is None:
        if not only_report:
            raise ArgumentError(f"timing has no subject; name one of {', '.join(SUBJECTS)}.")
        _run([], out)


@command.command()
def step(
    sizes: SizesOption = "1e4,1e5,1e6,1.6e7,1e8,resnet18",
    optimizers: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(steps.OURS)}")
    ] = "all",
    state: Annotated[
        str, typer.Option(help=f"how moments are kept: {FULL} or {', '.join(STATES)}")
    ] = FULL,
    gradients: Annotated[
        str, typer.Option(help=f"dtype of the gradients: {' or '.join(steps.GRADIENTS)}")
    ] = FULL,
    torch: Annotated[
        bool, typer.Option("--torch", help="PyTorch's fused AdamW is timed, too")
    ] = False,
    rounds: RoundsOption = 15,
    seconds: SecondsOption = 20.0,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Each optimizer's step beside optax's and a plain copy; 1e8 parameters take 6 GB.

    Gradients are given; parameters and state are donated.
    """
    names = some_of(optimizers, "optimizers", steps.OURS)
    choice_of(state, "state", (FULL, *STATES))
    choice_of(gradients, "gradients", steps.GRADIENTS)
    if torch and gradients != FULL:
        raise ArgumentError(
            f"gradients is {gradients!r}, but PyTorch's have their parameters' dtype; leave "
            "out one of gradients and torch."
        )
    chosen, rounds = _sizes(sizes, rounds, seconds, quick)
    device = torch_peer.device() if torch else None
    options = {"gradients": gradients, "torch": device}
    units = [
        steps.step_unit(size, name, state, rounds, seconds, **options)
        for size in chosen
        for name in names
    ]
    _run(units, out)


@command.command("dao_e")
def dao_e(
    sizes: SizesOption = "1e6,1.6e7,mlp,resnet18",
    rounds: RoundsOption = 15,
    seconds: SecondsOption = 20.0,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """A step of DAO-E beside Adam's and its experts', and inside the training of networks."""
    chosen, rounds = _sizes(sizes, rounds, seconds, quick)
    _run([unit for size in chosen for unit in steps.mixture_units(size, rounds, seconds)], out)


@command.command("compile")
def compile_steps(
    rounds: RoundsOption = 3, quick: QuickOption = False, out: OutOption = None
) -> None:
    """Fresh compilations of a step, by the number of small arrays."""
    _run(programs.compile_units(_rounds(rounds, quick), quick), out)


@command.command()
def epoch(data: DataOption = None, rounds: RoundsOption = 5, out: OutOption = None) -> None:
    """An epoch of MNIST (MLP 784-256-128-10, Adam) in JAX and in PyTorch."""
    _run(programs.epoch_units(data, positive(rounds, "rounds")), out)


@command.command()
def fit(rounds: RoundsOption = 9, quick: QuickOption = False, out: OutOption = None) -> None:
    """An epoch of digits through optabs.fit, and one of a lax.scan by hand."""
    _run(programs.fit_units(_rounds(rounds, quick), quick), out)


@command.command()
def population(
    rounds: RoundsOption = 7, quick: QuickOption = False, out: OutOption = None
) -> None:
    """MLPs on digits that learn together and one by one, and what evolving adds."""
    _run(programs.population_units(_rounds(rounds, quick), quick), out)


def _sizes(text: str, rounds: int, seconds: float, quick: bool) -> tuple[list[str], int]:
    chosen = steps.sizes_of("16" if quick else text)
    if not seconds > 0:
        raise ArgumentError(f"seconds is {seconds}; pass a number above 0.")
    return chosen, _rounds(rounds, quick)


def _rounds(rounds: int, quick: bool) -> int:
    return 1 if quick else positive(rounds, "rounds")


def _run(units: Sequence[Unit], out: pathlib.Path | None) -> None:
    """Times what has no record yet, and writes the tables of all records that are there."""
    records = Records(prepare_folder(out or pathlib.Path("runs/timing")))
    run_units(units, records)
    figures = tables.figures_of(records)
    sections: list[report.Table | str] = []
    for kind, (title, sections_of) in SUBJECTS.items():
        if records.select(kind=kind):
            sections += [f"## {title}\n", *sections_of(records)]
        if kind in figures:
            sections += [f"![{title}]({kind}.png)\n"]
    report.write(records.folder, "Times", sections, figures)
