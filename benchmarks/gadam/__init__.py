"""Gadam beside the best of independent Adam runs, on functions of many minima and networks."""

import fnmatch
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import typer

from benchmarks.gadam import program, report
from benchmarks.gadam import tasks as known
from benchmarks.gadam.tasks import TUNED, Arm, Task
from benchmarks.lab import arguments as given
from benchmarks.lab import timing
from benchmarks.lab.originals import require
from benchmarks.lab.records import Key, Records, opened, rounded
from benchmarks.lab.study import TUNING_SEEDS, Grid, Unit, run_units, tune

GRID = Grid(-7, -2)  # times the task's scale
POINTS = 40  # kept of a curve, after equal shares of the budget
TIMED = 3  # runs of the tuned rule, of which the median is what a peer is allowed


def command(
    tasks: Annotated[
        str, typer.Option(help="names, or patterns such as digits,*-30-shifted; default: all")
    ] = "",
    arms: Annotated[str, typer.Option(help="all, or some")] = ",".join(known.MAIN),
    seeds: Annotated[int, typer.Option(help="reported runs of each arm")] = 10,
    peers: Annotated[bool, typer.Option("--peers", help="evosax, too, at equal time")] = False,
    data: given.DataOption = None,
    quick: given.QuickOption = False,
    only_report: given.ReportOption = False,
    out: given.OutOption = None,
) -> None:
    """Gadam against the best of independent Adam runs, on functions and small networks.

    Every arm has as many gradient evaluations and rates, chosen on seeds that are not
    reported. Finished records are kept; the same call goes on where it was interrupted.
    """
    parts = [fnmatch.filter(known.TASKS, part) or [part] for part in tasks.split(",")]
    names = given.tasks_of(",".join(itertools.chain(*parts)), known.TASKS, ("mnist",), data)
    wanted = given.some_of(arms, "arms", known.ARMS)
    given.positive(seeds, "seeds")
    if quick:
        names, seeds = names[:1], min(seeds, 2)
    if peers:  # which run for as long as the tuned rule
        require(program.EVOSAX, "peers")
        wanted = list(dict.fromkeys([*wanted, TUNED]))
    records = opened("gadam", out, only_report=only_report, quick=quick)
    if not only_report:
        made = {name: known.task_of(name, data, 4 if quick else 1) for name in names}
        run_units(units_of(made, wanted, seeds), records)
        if peers:
            run_units(peer_units_of(made, seeds, records), records)
    report.write(records)


def units_of(tasks: Mapping[str, Task], arms: Sequence[str], seeds: int) -> list[Unit]:
    """One for each arm on each task: its tuning, its runs, and the curves over all of them."""
    units = []
    for (name, task), arm in itertools.product(tasks.items(), arms):
        if rule := known.arms_of(name).get(arm):
            tuning, curves = (Key(name, arm, kind=kind) for kind in ("tuning", "curves"))
            runs = [Key(name, arm, seed=seed) for seed in range(seeds)]
            make = functools.partial(_trained, task, rule, seeds)
            units.append(Unit((tuning, *runs, curves), _config(task, rule, seeds), make))
    return units


def _config(task: Task, arm: Arm, seeds: int) -> dict[str, Any]:
    own = dict(zip(Task._fields[:4], task[:4], strict=True))
    chosen = {"grid": GRID.rates, "tuning_seeds": TUNING_SEEDS}
    return {**own, "arm": arm._asdict(), **chosen, "seeds": seeds}


def _trained(
    task: Task, arm: Arm, seeds: int, missing: Sequence[Key], done: Mapping[Key, Any]
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Chooses the rate, then runs all seeds in one program."""
    run = program.program_of(task, arm)

    def finals(rates: Sequence[float]) -> np.ndarray:
        pairs = np.repeat(rates, len(TUNING_SEEDS)), np.tile(TUNING_SEEDS, len(rates))
        return run(*pairs).curve[:, -1].reshape(len(rates), -1)

    first = missing[0]._replace(kind="tuning", seed=None)
    tuning = done.get(first) or tune(finals, GRID).result()
    if first not in done:
        yield first, tuning
    outcome = run([tuning["best"]] * seeds, range(seeds))
    measures = {"loss": outcome.curve[:, -1]}
    if task.test is not None:
        tested = jax.jit(jax.vmap(task.test))(outcome.params)
        measures |= zip(("test_loss", "test_accuracy"), tested, strict=True)
    results: list[dict[str, Any]] = [
        {"rate": tuning["best"]}
        | {name: rounded(values[seed]) for name, values in measures.items()}
        for seed in range(seeds)
    ]
    spent = known.spent_of(arm, task)
    kept = np.unique(np.linspace(0, len(spent) - 1, POINTS).round().astype(int))
    quartiles = np.percentile(outcome.curve[:, kept], (25, 50, 75), axis=0)
    curves = {"looks": spent[kept], "quartiles": rounded(quartiles)}
    if outcome.diversity is not None:
        curves["diversity"] = rounded(np.median(outcome.diversity, axis=0)[kept])
    for key in missing:
        if key.kind != "tuning":
            yield key, curves if key.seed is None else results[key.seed]


def peer_units_of(tasks: Mapping[str, Task], seeds: int, records: Records) -> list[Unit]:
    """One for every method on each task without noise, which is in gradients alone."""
    units = []
    for (name, task), (arm, peer) in itertools.product(tasks.items(), program.PEERS.items()):
        if name.endswith(known.NOISY) or (name in known.NETWORKS and arm == program.SMALL):
            continue
        rule = known.arms_of(name)[TUNED]
        (tuning,) = records.select(task=name, arm=TUNED, kind="tuning")
        keys = [Key(name, arm, kind="peer", seed=seed) for seed in (*range(seeds), None)]
        config = _config(task, rule, seeds) | {"peer": peer._asdict()}
        allowed = functools.partial(_allowed_seconds, task, rule, tuning.result["best"])
        make = functools.partial(_searched, task, peer, allowed, seeds)
        units.append(Unit(tuple(keys), config, make))
    return units


def _searched(
    task: Task, peer: program.Peer, allowed: Callable[[], float], seeds: int,
    missing: Sequence[Key], done: Mapping[Key, Any],
) -> Iterator[tuple[Key, dict[str, Any]]]:  # fmt: skip
    """Chooses the setting, then runs the seeds, each for the seconds that the rule takes."""

    def searched(setting: tuple[int, float], seeds: Sequence[int]) -> Any:
        search = jax.jit(functools.partial(program.search, task, peer, setting))
        count, started = _generations(search, allowed()), time.perf_counter()
        losses = [float(search(seed, count).loss) for seed in seeds]
        return losses, (time.perf_counter() - started) / len(seeds), count * setting[0]

    tuning = [searched(setting, TUNING_SEEDS)[0] for setting in peer.settings]
    best = peer.settings[int(np.argmin(np.mean(tuning, axis=1)))]
    losses, seconds, judged = searched(best, range(seeds))
    whole = {
        "setting": dict(zip(("population", "strength"), best, strict=True)),
        "losses": rounded(tuning),
        "judged": judged,
        "seconds": round(seconds, 4),
        "allowed_seconds": round(allowed(), 4),
    }
    for key in missing:
        yield key, whole if key.seed is None else {"loss": rounded(losses[key.seed])}


@functools.cache
def _allowed_seconds(task: Task, rule: Arm, rate: float) -> float:
    """What one seed's run of a rule takes, compiled."""
    run = jax.jit(functools.partial(program.run, task, rule, rate))
    _, seconds = timing.timed({"rule": lambda: run(0).curve}, TIMED)
    return timing.median(seconds["rule"])


def _generations(search: Callable[[int, int], program.Best], allowed: float) -> int:
    """How many fit into so many seconds."""

    def each(count: int) -> float:
        return timing.seconds_of(lambda: search(0, count).loss) / count

    return max(1, int(allowed / each(timing.repeats_of(each))))
