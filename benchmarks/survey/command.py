"""The survey's optimizers on its four questions about rates and saddle points."""

import pathlib
from typing import Annotated, Any

import jax
import typer
from tqdm import tqdm

from benchmarks import store
from benchmarks.lab.arguments import names_of, positive
from benchmarks.runs import kept_in
from benchmarks.survey.optimizers import DECAYING, ENTRIES
from benchmarks.survey.pictures import draw_landscapes, paths_of
from benchmarks.survey.problems import PROBLEMS, Problem
from benchmarks.survey.questions import draw_questions
from benchmarks.survey.records import Records
from benchmarks.survey.report import write_tables
from benchmarks.survey.study import Task, study

RESULTS = pathlib.Path("runs/survey")


def survey(
    problems: Annotated[str, typer.Option(help=f"all, or some of {', '.join(PROBLEMS)}")] = "",
    optimizers: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(ENTRIES)}")
    ] = "",
    steps: Annotated[
        int | None, typer.Option(help="of every run, in place of each problem's own number")
    ] = None,
    seeds: Annotated[int, typer.Option(help="reported runs of each optimizer")] = 5,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Compares all optimizers on valleys, a saddle, ravines, quadratics and two data sets.

    Every optimizer tries the same rates, on seeds that are not reported. Finished records
    are kept; the same call goes on where it was interrupted.
    """
    wanted = names_of(problems or ",".join(PROBLEMS), "problems", PROBLEMS)
    names = names_of(optimizers or ",".join(ENTRIES), "optimizers", ENTRIES)
    if steps is not None:
        positive(steps, "steps")
    everyone = tuple(range(positive(seeds, "seeds")))
    store.prepare_folder(out)
    made = {name: PROBLEMS[name]() for name in wanted}
    tasks = [
        Task(problem, name, entry, steps or made[problem].steps, everyone)
        for problem in wanted
        for name, entry in _entries(problem, names)
    ]
    records = _run_all(tasks, made, out)
    write_tables(records, {name: problem.title for name, problem in made.items()}, out)
    paths = paths_of(records)
    draw_landscapes(paths, out)
    draw_questions(records, paths, out)
    typer.echo(f"tables and pictures: {out}")


def _entries(problem: str, names: list[str]) -> list[tuple[str, Any]]:
    """The rows of a problem: where gradients are noisy, decaying rates as well."""
    entries = [(name, ENTRIES[name]) for name in names]
    if problem == "noisy":
        entries += [
            (name, entry)
            for name, entry in DECAYING.items()
            if name.removesuffix("_cosine") in names
        ]
    return entries


def _run_all(tasks: list[Task], problems: dict[str, Problem], folder: pathlib.Path) -> Records:
    """Makes the records that are missing, and reads all."""
    todo = [
        task
        for task in tasks
        if not store.finished(task.path(folder), task.config(problems[task.problem_name]))
    ]
    with kept_in(folder), tqdm(todo, unit="record", dynamic_ncols=True, disable=None) as bar:
        for task in bar:
            bar.set_postfix_str(f"{task.problem_name} {task.name}")
            store.write_json(task.path(folder), study(task, problems[task.problem_name]))
            jax.clear_caches()
    return {
        (task.problem_name, task.name): store.read_json(task.path(folder)) for task in tasks
    }
