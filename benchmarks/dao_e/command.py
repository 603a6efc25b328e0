"""The command `dao_e`: the paper's experiment, or with --study the study over many tasks."""

import pathlib
from typing import Annotated

import typer

from benchmarks import store
from benchmarks.dao_e import study as study_of
from benchmarks.dao_e import study_report
from benchmarks.dao_e.arms import ARMS, SINGLES, UNIFORM
from benchmarks.dao_e.settings import SETTINGS
from benchmarks.dao_e.study import Plan
from benchmarks.dao_e.workers import make_all
from benchmarks.lab.arguments import DataOption, names_of, positive, tasks_of
from benchmarks.lab.tasks import NEED_IMAGES

RESULTS = pathlib.Path("runs/dao_e")
SEEDS = 5  # of the study's finalists
QUICK_TASKS, QUICK_ARMS, QUICK_STEPS, QUICK_SEEDS = "quadratic,logistic", "rule", 40, 2


def dao_e(
    study: Annotated[
        bool, typer.Option("--study", help="the study over many tasks, not the paper's run")
    ] = False,
    dataset: Annotated[str, typer.Option(help="of the paper's run")] = "cifar10",
    model: Annotated[str, typer.Option(help="of the paper's run")] = "resnet18",
    data: DataOption = None,
    regime: Annotated[
        str, typer.Option(help="a: constant rate; b: crop, flip and cosine rate")
    ] = "a",
    optimizers: Annotated[
        str, typer.Option(help="of the paper's run")
    ] = "sgd,adam,rmsprop,lion,dao_e",
    learning_rate: Annotated[float, typer.Option(help="of the paper's run")] = 1e-3,
    epochs: Annotated[int, typer.Option(help="of the paper's run")] = 100,
    batch_size: Annotated[int, typer.Option(help="of the paper's run")] = 128,
    seeds: Annotated[
        int | None, typer.Option(help=f"default: 1, in the study {SEEDS} for finalists")
    ] = None,
    subset: Annotated[int, typer.Option(help="training images; 0: all")] = 0,
    bfloat16: Annotated[bool, typer.Option(help="activations in bfloat16")] = False,
    minutes: Annotated[
        float, typer.Option(help="stop after so many, to be called again; 0: no limit")
    ] = 0.0,
    tasks: Annotated[
        str, typer.Option(help=f"study: all, or some of {', '.join(study_of.MAKERS)}")
    ] = "",
    settings: Annotated[
        str, typer.Option(help=f"study: all, or some of {', '.join(SETTINGS)}")
    ] = "",
    arms: Annotated[
        str, typer.Option(help="study: besides the single experts and uniform; all, or some")
    ] = "",
    steps: Annotated[
        int | None, typer.Option(help="study: in place of each task's own")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="study: processes, each on a core of its own")
    ] = 1,
    final: Annotated[
        bool, typer.Option("--final", help="study: look at the test data, at the very end")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="study: two tasks, two arms, few steps")
    ] = False,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """DAO-E against its experts: on CIFAR-10 as in the paper, or over many tasks.

    Finished records are kept; the same call goes on where it was interrupted.
    """
    if seeds is not None:
        positive(seeds, "seeds")
    if not study:
        from benchmarks.dao_e.paper import run_paper

        run_paper(
            dataset=dataset,
            model=model,
            data=data,
            regime=regime,
            optimizers=[name.strip() for name in optimizers.split(",")],
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            seeds=seeds or 1,
            subset=subset,
            bfloat16=bfloat16,
            minutes=minutes,
            out=out,
        )
        return
    if quick:
        tasks, arms = tasks or QUICK_TASKS, arms or QUICK_ARMS
        steps = QUICK_STEPS if steps is None else steps
        seeds = QUICK_SEEDS if seeds is None else seeds
    if steps is not None:
        positive(steps, "steps")
    wanted = names_of(arms or ",".join(ARMS), "arms", ARMS)
    chosen = [arm for arm in ARMS if arm in wanted or arm in (*SINGLES, UNIFORM)]
    plan = Plan(
        tasks=tuple(tasks_of(tasks, study_of.MAKERS, NEED_IMAGES, data)),
        settings=tuple(names_of(settings or ",".join(SETTINGS), "settings", SETTINGS)),
        arms=tuple(chosen),
        seeds=seeds or SEEDS,
        folder=store.prepare_folder(out),
        source=data,
        steps=steps,
        final=final,
    )
    make_all(study_of.units_of(plan, tuning=True), plan, positive(workers, "workers"))
    make_all(study_of.units_of(plan, tuning=False), plan, workers)
    study_report.write(study_of.read(plan), out)
    typer.echo(f"tables and pictures: {out}")
