"""Gadam beside the best of independent Adam runs, on functions of many minima and networks."""

import fnmatch
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import typer

from benchmarks.gadam import program, report
from benchmarks.gadam.tasks import (
    ARMS,
    MAIN,
    NEED_IMAGES,
    NOISY,
    TASKS,
    TUNED,
    Arm,
    Task,
    arms_of,
    count_of,
    fewest_epochs,
    spent_at,
    task_of,
)  # fmt: skip
from benchmarks.lab import arguments as given
from benchmarks.lab import processes as several
from benchmarks.lab import timing
from benchmarks.lab.records import Key, Records, prepare_folder, record_of, rounded
from benchmarks.lab.study import TUNING_SEEDS, Grid, Unit, run_units, tune

GRID = Grid(-7, -2)  # times the task's scale
LOOKS = 40  # points kept of a curve, after equal shares of the budget
KEPT_GENERATIONS = 30  # of the first seed's lineage
QUARTILES = (25, 50, 75)
QUICK_SEEDS = 2
TIMED = 3  # calls of a peer, of which the median counts
FEWEST = 4  # generations of a peer

Made = Iterator[tuple[Key, dict[str, Any]]]


def command(
    tasks: Annotated[
        str, typer.Option(help="names, or patterns such as digits,*-30-shifted; default: all")
    ] = "",
    arms: Annotated[
        str, typer.Option(help="all, with those that were tried, too; or some")
    ] = ",".join(MAIN),
    seeds: Annotated[int, typer.Option(help="reported runs of each arm")] = 10,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="of each unit; default: 2000 on functions, as steps, 40 on networks"
        ),
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="evosax's methods at equal time, after the arms")
    ] = False,
    processes: Annotated[
        int, typer.Option(help="no study: one run on so many processes; 0: the study")
    ] = 0,
    join: Annotated[
        bool, typer.Option("--join", help="no study: such a run, called on each host")
    ] = False,
    data: given.DataOption = None,
    quick: given.QuickOption = False,
    only_report: given.ReportOption = False,
    out: given.OutOption = None,
) -> None:
    """Gadam against the best of independent Adam runs, on functions and small networks.

    Every arm has as many gradient evaluations and rates, chosen on seeds that are not
    reported. Finished records are kept; the same call goes on where it was interrupted.
    """
    folder = out or pathlib.Path("runs") / "gadam"
    if join:
        _join(folder)
        return
    if processes:
        line = [sys.executable, "-m", "benchmarks", "gadam", "--join", "--out", str(folder)]
        several.launch(line, processes=given.positive(processes, "processes"))
        return
    names = _names(tasks, data)
    wanted = given.some_of(arms, "arms", ARMS)
    if quick:
        names, seeds = names[:1], min(seeds, QUICK_SEEDS)
        epochs = fewest_epochs(names[0]) if epochs is None else epochs
    for name in names:
        if epochs is not None and epochs < fewest_epochs(name):
            raise given.ArgumentError(
                f"epochs is {epochs}, too few for a generation of every arm on {name}; pass "
                f"{fewest_epochs(name)} or more."
            )
    given.positive(seeds, "seeds")
    if peers:
        program.load_evosax()
    records = Records(prepare_folder(folder))
    if not only_report:
        made = {name: task_of(name, data, epochs) for name in names}
        run_units(units_of(made, wanted, seeds), records)
        if peers:
            run_units(peer_units_of(made, seeds, records), records)
    report.write(records)


def _names(text: str, data: pathlib.Path | None) -> list[str]:
    """The tasks of a list of names and patterns; of all, those for which there are data."""
    names = []
    for part in text.split(",") if text else []:
        found = fnmatch.filter(TASKS, part.strip())
        if not found:
            raise given.ArgumentError(
                f"tasks has {part!r}, which fits none; pass names or patterns such as "
                "digits,*-30-shifted,rastrigin-*."
            )
        names += found
    return given.tasks_of(",".join(names), TASKS, NEED_IMAGES, data)


def units_of(tasks: Mapping[str, Task], arms: Sequence[str], seeds: int) -> list[Unit]:
    """One for each arm on each task: its tuning, its runs, and the curves over all of them."""
    units = []
    for name, task in tasks.items():
        for arm in arms_of(name):
            if arm in arms:
                keys = [Key(name, arm, seed=seed) for seed in range(seeds)]
                first, last = (Key(name, arm, kind=kind) for kind in ("tuning", "curves"))
                make = functools.partial(_made, task, arms_of(name)[arm], seeds)
                config = _config(task, arms_of(name)[arm], seeds) | {"grid": GRID.rates}
                units.append(Unit((first, *keys, last), config, make))
    return units


def _config(task: Task, arm: Arm, seeds: int) -> dict[str, Any]:
    own = {
        name: getattr(task, name) for name in ("title", "units", "epochs", "steps", "scale")
    }
    return own | {
        "arm": arm._asdict(),
        "tuning_seeds": TUNING_SEEDS,
        "chosen_by": "mean",  # over the tuning seeds, as `tune` does
        "seeds": seeds,
    }


def _made(
    task: Task, arm: Arm, seeds: int, missing: Sequence[Key], done: Mapping[Key, Any]
) -> Made:
    """Chooses the rate, then runs all seeds in one program."""
    run = program.program_of(task, arm)
    first = missing[0]._replace(kind="tuning", seed=None)
    if first in done:
        best = done[first]["best"]
    else:
        tuning = tune(functools.partial(_finals, run), GRID)
        best = tuning.best
        yield first, tuning.result()
    started = time.perf_counter()
    outcome = run([best] * seeds, range(seeds))
    seconds = time.perf_counter() - started
    results: list[dict[str, Any]] = [
        {"rate": best, "loss": rounded(loss)} for loss in outcome.curve[:, -1]
    ]
    if task.test is not None:
        tested = jax.jit(jax.vmap(task.test))(outcome.params)
        for result, loss, accuracy in zip(results, *map(rounded, tested), strict=True):
            result |= {"test_loss": loss, "test_accuracy": accuracy}
    looks = np.linspace(1, outcome.curve.shape[1], LOOKS).round().astype(int)
    looks = np.unique(looks) - 1
    curves = {
        **count_of(arm, task)._asdict(),
        "looks": spent_at(arm, task, outcome.curve.shape[1])[looks],
        "quartiles": rounded(np.percentile(outcome.curve[:, looks], QUARTILES, axis=0)),
        "seconds": round(seconds, 2),
    }
    if outcome.lineage is not None:
        parents, survivors, diversity = outcome.lineage
        curves["diversity"] = rounded(np.median(diversity, axis=0)[looks])
        results[0] |= {
            "parents": parents[0, :KEPT_GENERATIONS],
            "survivors": survivors[0, :KEPT_GENERATIONS],
        }
    for key in missing:
        if key.kind != "tuning":
            yield key, curves if key.seed is None else results[key.seed]


def _finals(run: program.Program, rates: Sequence[float]) -> np.ndarray:
    """The final losses: float [rates, tuning seeds]."""
    seeds = np.tile(TUNING_SEEDS, len(rates))
    curves = run(list(np.repeat(rates, len(TUNING_SEEDS))), list(seeds)).curve
    return curves[:, -1].reshape(len(rates), -1)


def peer_units_of(tasks: Mapping[str, Task], seeds: int, records: Records) -> list[Unit]:
    """One for every method on each task without noise, which is in gradients alone."""
    units = []
    for name, task in tasks.items():
        if name.endswith(f"-{NOISY}"):
            continue
        (rule,) = units_of({name: task}, [TUNED], seeds)
        if not records.finished(rule.keys[0], rule.config):
            raise given.ArgumentError(
                f"peers run for as long as the tuned rule, of which {str(records.folder)!r} "
                f"has no such record on {name}; have {TUNED} among arms."
            )
        rate = rule.done(records)[rule.keys[0]]["best"]
        budget = functools.cache(functools.partial(_budget, task, arms_of(name)[TUNED], rate))
        size = program.parameters_of(task)
        for arm, peer in program.PEERS.items():
            if size <= peer.largest:
                keys = [Key(name, arm, kind="peer", seed=seed) for seed in range(seeds)]
                own = {
                    "label": peer.label,
                    "algorithm": peer.algorithm,
                    "settings": peer.settings,
                }
                config = _config(task, arms_of(name)[TUNED], seeds) | {"peer": own}
                make = functools.partial(_searched, task, peer, seeds, budget)
                units.append(Unit((Key(name, arm, kind="peer"), *keys), config, make))
    return units


def _searched(
    task: Task,
    peer: program.Peer,
    seeds: int,
    budget: Callable[[], float],
    missing: Sequence[Key],
    done: Mapping[Key, Any],
) -> Made:
    """Chooses the setting, then runs the seeds, each for the seconds that the rule takes."""
    searches = [program.search_of(task, peer, setting) for setting in peer.settings]
    counts = [_generations(search, budget()) for search in searches]
    tuning = [
        [float(search(seed, count).loss) for seed in TUNING_SEEDS]
        for search, count in zip(searches, counts, strict=True)
    ]
    best = int(np.argmin(np.mean(tuning, axis=1)))
    seconds, losses = [], []
    for seed in range(seeds):
        started = time.perf_counter()
        losses.append(float(searches[best](seed, counts[best]).loss))
        seconds.append(time.perf_counter() - started)
    setting = peer.settings[best]
    whole = {
        "setting": setting._asdict(),
        "generations": counts[best],
        "judged": counts[best] * setting.population,
        "losses": rounded(tuning),
        "allowed_seconds": round(budget(), 4),
        "seconds": round(timing.median(seconds), 4),
    }
    for key in missing:
        yield key, whole if key.seed is None else {"loss": rounded(losses[key.seed])}


def _budget(task: Task, arm: Arm, rate: float) -> float:
    """The seconds of one seed's run of a rule at its chosen rate, compiled."""
    run = jax.jit(program.pair_of(task, arm))
    return _seconds(lambda: run(np.float32(rate), 0).curve)


def _generations(search: program.Search, budget: float) -> int:
    """How many generations fit into so many seconds."""
    count = FEWEST
    while True:
        seconds = _seconds(lambda: search(0, count).loss)  # noqa: B023
        if seconds >= budget / 4:
            return max(FEWEST, int(count * budget / seconds))
        count *= 4


def _seconds(run: Callable[[], Any]) -> float:
    """The median of a few calls after a warm-up."""
    jax.block_until_ready(run())
    return timing.median([timing.seconds_of(run) for _ in range(TIMED)])


def _join(folder: pathlib.Path) -> None:
    """Joins the other processes, runs Gadam with them, and keeps what happened."""
    found = program.on_all_devices()
    if jax.process_index() == 0:
        for number, loss in enumerate(found["best"], start=1):
            typer.echo(f"generation {number}: best validation loss {loss:.4f}")
        typer.echo(
            f"{found['units']} units on {found['devices']} devices of {found['processes']} "
            f"processes; learning sends {found['learning_receives']} bytes, and after an "
            f"evolution each device has received {found['evolution_receives']:,} bytes, "
            f"{found['share']:.2f} times the population with its optimizers' states"
        )
        key = Key("digits", TUNED, f"{found['processes']} processes", "spread")
        Records(prepare_folder(folder)).add(record_of(key, {}, found))
