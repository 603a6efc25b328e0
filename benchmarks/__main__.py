"""The command line: `python -m benchmarks <name>`."""

import sys

import typer

from benchmarks.arguments import ArgumentError
from benchmarks.codecs import codecs
from benchmarks.compile_time import compile_time
from benchmarks.dao_e.command import dao_e
from benchmarks.data import DataError
from benchmarks.epoch_time import epoch_time
from benchmarks.fit_time import fit_time
from benchmarks.gadam.command import gadam
from benchmarks.gadam.processes import ProcessDied
from benchmarks.longest_step import longest_step
from benchmarks.narrow import narrow
from benchmarks.optimabs import optimabs
from benchmarks.population_time import population_time
from benchmarks.runs import Interrupted
from benchmarks.steady import steady
from benchmarks.step_time import step_time
from benchmarks.store import StoreError
from benchmarks.survey.command import survey

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.callback()(lambda: None)
for command in (
    optimabs,
    steady,
    survey,
    dao_e,
    gadam,
    step_time,
    epoch_time,
    fit_time,
    compile_time,
    population_time,
    codecs,
    longest_step,
    narrow,
):
    app.command(command.__name__)(command)


def main() -> None:
    """Runs a command; bad input ends in one sentence and exit code 2."""
    try:
        app(prog_name="python -m benchmarks")
    except (ArgumentError, DataError, ProcessDied, StoreError) as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except Interrupted as interruption:
        typer.echo(f"\n{interruption}", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
