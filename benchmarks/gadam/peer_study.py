"""Black-box methods against the tuned rule, each for as long as the rule takes."""

import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import store
from benchmarks.gadam import study
from benchmarks.gadam.arms import TUNED
from benchmarks.gadam.peers import PEERS, Setting, load_evosax, search_of
from benchmarks.gadam.program import pair_of
from benchmarks.gadam.records import Record, Records, bounded, median
from benchmarks.gadam.study import Plan, Unit
from benchmarks.lab import report, timing
from benchmarks.lab.arguments import ArgumentError

TIMED = 3  # calls, of which the median counts
FEWEST = 4  # generations
NOISY = "noisy"  # in gradients, which these methods do not see


def path_of(unit: Unit, folder: pathlib.Path) -> pathlib.Path:
    """Where a record is kept."""
    return folder / "peers" / unit.task / f"{unit.arm}.json"


def units_of(plan: Plan) -> list[Unit]:
    """The records of a plan: every method on every task that has no noise."""
    load_evosax()
    tasks = [task for task in plan.tasks if not task.endswith(f"-{NOISY}")]
    return [
        Unit(task, name)
        for task in tasks
        for name, peer in PEERS.items()
        if peer.largest is None or _size(task, plan) <= peer.largest
    ]


def config_of(unit: Unit, plan: Plan) -> dict[str, Any]:
    """What distinguishes a record."""
    peer = PEERS[unit.arm]
    own = {
        "label": peer.label,
        "algorithm": peer.algorithm,
        "settings": [list(setting) for setting in peer.settings],
    }
    rule = study.config_of(Unit(unit.task, TUNED), plan)
    return {key: rule[key] for key in rule if key != "grid"} | {"peer": own}


def is_finished(unit: Unit, plan: Plan) -> bool:
    """Whether the record is there, made by the same configuration."""
    return store.finished(path_of(unit, plan.folder), config_of(unit, plan)) is not None


def make(unit: Unit, plan: Plan) -> None:
    """Makes a record and keeps it."""
    task = study.task_of(unit.task, plan.source, plan.steps, plan.epochs)
    peer, budget = PEERS[unit.arm], _budget(unit.task, plan)
    tuning, generations = [], []
    searches = [search_of(task, peer, setting) for setting in peer.settings]
    for search in searches:
        generations.append(_generations(search, budget))
        tuning.append([_loss(search, seed, generations[-1]) for seed in study.TUNING_SEEDS])
    best = study.chosen(np.array(tuning))
    losses, seconds = [], []
    for seed in range(plan.seeds):
        started = time.perf_counter()
        losses.append(_loss(searches[best], seed, generations[best]))
        seconds.append(time.perf_counter() - started)
    setting = peer.settings[best]
    results = {
        "setting": setting._asdict(),
        "generations": generations[best],
        "losses": generations[best] * setting.population,
        "tuning": [study.kept(row) for row in tuning],
        "final": study.kept(losses),
        "allowed_seconds": round(budget, 4),
        "seconds": round(statistics.median(seconds), 4),
    }
    record = {
        "config": config_of(unit, plan),
        "results": results,
        "environment": store.environment(),
    }
    store.write_json(path_of(unit, plan.folder), record)
    jax.clear_caches()


def _size(task: str, plan: Plan) -> int:
    """The number of parameters of a task."""
    of_task = study.task_of(task, plan.source, plan.steps, plan.epochs)
    shape = jax.eval_shape(
        lambda key: of_task.pose(key).init_fn(key), jax.eval_shape(jax.random.key, 0)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shape))


@functools.cache
def _budget(name: str, plan: Plan) -> float:
    """The seconds of one seed's run of the tuned rule at its chosen rate, compiled."""
    path = Unit(name, TUNED).path(plan.folder)
    record = store.finished(path, study.config_of(Unit(name, TUNED), plan))
    if record is None:
        raise ArgumentError(
            f"peers run for as long as the tuned rule, of which {str(plan.folder)!r} has no "
            f"such record on {name}; have {TUNED} among arms."
        )
    task = study.task_of(name, plan.source, plan.steps, plan.epochs)
    arm, rate = study.arms_of(name)[TUNED], record["results"]["rate"]
    run = jax.jit(pair_of(task, arm))
    return _seconds(lambda: run(np.float32(rate), 0).curve)


def _generations(search: Callable[..., Any], budget: float) -> int:
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


def _loss(search: Callable[..., Any], seed: int, generations: int) -> float:
    return float(search(seed, generations).loss)


def tables(records: Records, peers: Records) -> list[report.Table]:
    """Losses at equal time, and what the methods chose and evaluated."""
    tasks = list(dict.fromkeys(task for task, _ in peers))
    names = [name for name in PEERS if any((task, name) in peers for task in tasks)]
    header = ["task", *(PEERS[name].label for name in names)]
    losses = [
        [
            _title(task),
            f"{median(records, task, TUNED):.2g}",
            *(_cell(peers, task, name, _median) for name in names),
        ]
        for task in tasks
    ]
    spent = [
        [_title(task), *(_cell(peers, task, name, _spent) for name in names)] for task in tasks
    ]
    return [
        report.Table(
            "Black-box methods, each for as long as the tuned rule takes: median final loss",
            [header[0], "Gadam, tuned", *header[1:]],
            losses,
        ),
        report.Table(
            "The setting that each chose (population, strength), its evaluations of the loss, "
            "and its seconds of those allowed",
            header,
            spent,
        ),
    ]


def _title(task: str) -> str:
    return task.replace("-", ", ").replace("_", " ")


def _cell(peers: Records, task: str, name: str, text_of: Callable[[str, Record], str]) -> str:
    return text_of(task, peers[task, name]) if (task, name) in peers else ""


def _median(task: str, record: Record) -> str:
    return f"{bounded(task, np.median(np.array(record['results']['final'], float))):.2g}"


def _spent(task: str, record: Record) -> str:
    results = record["results"]
    setting = Setting(**results["setting"])
    return (
        f"{setting.population}, {setting.strength:g}; {results['losses']:,}; "
        f"{results['seconds']:.2f} of {results['allowed_seconds']:.2f} s"
    )
