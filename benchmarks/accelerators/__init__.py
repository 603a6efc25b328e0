"""Kernels, bytes and collectives of a step compiled for an H100, a TPU v5e and this CPU.

XLA compiles ahead of time for a device that is only described: nothing runs on it, but the
program is the one that would. `--run` is apart from that: where there is a GPU, it times and
trains there what waits for one.
"""

import pathlib
from typing import Annotated

import jax
import typer

from benchmarks.accelerators import archive, compiled, parts
from benchmarks.accelerators.devices import DEVICES, devices_of
from benchmarks.accelerators.rows import ROWS, TREES
from benchmarks.lab import report
from benchmarks.lab.arguments import (
    ArgumentError,
    DataOption,
    OutOption,
    QuickOption,
    ReportOption,
    some_of,
)
from benchmarks.lab.records import opened
from benchmarks.lab.study import run_units


def command(
    rows: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(ROWS)}, {compiled.GADAM}")
    ] = "all",
    trees: Annotated[
        str, typer.Option(help=f"of parameters: all, or some of {', '.join(TREES)}")
    ] = "all",
    devices: Annotated[
        str,
        typer.Option(help=f"all that can be compiled for, or some of {', '.join(DEVICES)}"),
    ] = "all",
    run: Annotated[
        bool, typer.Option("--run", help="on this machine's GPU, else toy sizes on its CPU")
    ] = False,
    minutes: Annotated[float, typer.Option(help="of --run, at most")] = 9.0,
    write_archive: Annotated[
        pathlib.Path | None,
        typer.Option("--archive", help="writes the data of --run into this file, and ends"),
    ] = None,
    data: DataOption = None,
    quick: QuickOption = False,
    only_report: ReportOption = False,
    out: OutOption = None,
) -> None:
    """What one step costs, compiled for an H100, a TPU v5e and this CPU, not run on them.

    A step is `update` and `optax.apply_updates` in one program, with donated parameters and
    state. `make accelerators` installs the compilers; without them the CPU is left.

    --run times and trains instead, in order of worth, what waits for a GPU: a command each,
    which saves as it ends. It needs no network; --data is a folder, or what --archive wrote.
    """
    if write_archive is not None:
        archive.write(write_archive, data)
        return
    if run:
        if not minutes > 0:
            raise ArgumentError(f"minutes is {minutes:g}; pass a number above 0.")
        parts.run(minutes, data, out or pathlib.Path("runs") / "accelerators-run")
        return
    chosen = some_of(rows, "rows", [*ROWS, compiled.GADAM])
    shapes, found = some_of(trees, "trees", TREES), []
    if not only_report:
        found, lacking = devices_of(devices), compiled.lacking_of(chosen)
        chosen = [row for row in chosen if row not in lacking]
        if lacking:
            named = "; ".join(f"{row} (needs {lacks})" for row, lacks in lacking.items())
            typer.echo(f"Left out: {named}.")
    chosen, shapes = (each[: 1 if quick else None] for each in (chosen, shapes))
    records = opened("accelerators", out, only_report=only_report, quick=quick)
    jax.config.update("jax_platforms", "cpu")  # nothing runs elsewhere
    run_units([*compiled.units_of(shapes, chosen, found)], records)
    report.write(records.folder, compiled.TITLE, list(compiled.sections(records)))
