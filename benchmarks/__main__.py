"""The command line: `python -m benchmarks <name>`.

A module or package beside this file has a `command`, a function for typer. Only the one that
is called is imported.
"""

import ast
import importlib
import importlib.util
import pkgutil
import sys

import typer

import benchmarks
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.data import DataError
from benchmarks.lab.records import StoreError
from benchmarks.lab.study import Interrupted


def commands() -> dict[str, str]:
    """Each command's name and the first line of its module's docstring."""
    found = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        spec = importlib.util.find_spec(f"benchmarks.{module.name}")
        if module.name in ("lab", "__main__") or spec is None or spec.origin is None:
            continue
        with open(spec.origin, encoding="utf-8") as file:
            text = ast.get_docstring(ast.parse(file.read())) or ""
        found[module.name] = text.splitlines()[0]
    return found


def main() -> None:
    """Runs a command; bad input ends in one sentence and exit code 2."""
    known = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in known:
        width = max(map(len, known))
        typer.echo("Usage: python -m benchmarks NAME [OPTIONS]\n")
        typer.echo("\n".join(f"  {each:{width}}  {text}" for each, text in known.items()))
        if name == "--help":
            sys.exit(0)
        typer.echo(f"\nError: there is no {name[:60]!r}; name one of these.", err=True)
        sys.exit(2)
    command = importlib.import_module(f"benchmarks.{name}").command
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app(sys.argv[2:], prog_name=f"python -m benchmarks {name}")
    except (ArgumentError, DataError, StoreError) as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except Interrupted as interruption:
        typer.echo(f"\n{interruption}", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
