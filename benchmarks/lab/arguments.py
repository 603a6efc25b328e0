"""Reads command-line arguments, and refuses bad ones in one sentence."""

import pathlib
import textwrap
from collections.abc import Collection
from typing import Annotated

import typer

DataOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="folder of original files, or .npz of arrays; default: download"),
]
StepsOption = Annotated[int | None, typer.Option(help="in place of each task's own number")]
WorkersOption = Annotated[int, typer.Option(help="processes, each on a core of its own")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="one task, two arms, 2 seeds, few steps: does it work")
]
ReportOption = Annotated[
    bool, typer.Option("--report", help="from the records that are there; nothing is run")
]
OutOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="folder of results; default: runs/NAME or, if quick, runs/NAME-quick"),
]


class ArgumentError(ValueError):
    """A command-line argument that cannot be used, and what to pass."""


def some_of(
    text: str, name: str, known: Collection[str], *, separator: str = ","
) -> list[str]:
    """Known names from a list such as 'adam,adam_abs', or with 'all' or '' every one."""
    if text in ("", "all"):
        return list(known)
    names = [choice_of(part.strip(), name, known) for part in text.split(separator)]
    return list(dict.fromkeys(names))


def tasks_of(
    text: str, known: Collection[str], need_images: Collection[str], data: pathlib.Path | None
) -> list[str]:
    """Known tasks from a list; for '' or 'all', all of them for which there are data.

    A task that is named has its images downloaded where none are given.
    """
    names = some_of(text, "tasks", known)
    if data is not None or text not in ("", "all"):
        return names
    missing = [name for name in names if name in need_images]
    if missing:
        typer.echo(f"Left out, since they need images (pass --data): {', '.join(missing)}")
    return [name for name in names if name not in missing]


def choice_of(text: str, name: str, known: Collection[str]) -> str:
    """One of the known names."""
    if text not in known:
        some = textwrap.shorten(", ".join(known), 180, placeholder=" ...")
        asked = text if len(text) <= 60 else f"{text[:60]}..."
        raise ArgumentError(f"{name} is {asked!r}; choose from {some.rstrip('.')}.")
    return text


def positive(number: int, name: str) -> int:
    """A whole number above 0."""
    if number < 1:
        raise ArgumentError(f"{name} is {number}; pass a whole number above 0.")
    return number
