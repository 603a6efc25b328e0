"""The study's report: bars, losses, what was tried and pictures, all from the records."""

import copy
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.gadam.program import PEERS
from benchmarks.gadam.tasks import BASELINE, CONDITIONS, LITERAL, MAIN, NETWORKS, TASKS, TUNED
from benchmarks.lab import report
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.functions import FUNCTIONS
from benchmarks.lab.records import Records, as_floats
from benchmarks.lab.report import Bar, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR = 1e-4  # a function's final loss below it counts as it; float32 is no more exact
WANTED_RATIO, WANTED_FUNCTIONS, JUDGED_AT = 10.0, 4, "30"
SPENT = ("gradients", "judged")
NETWORK_TITLES = {
    "loss": "validation loss, and how far above the best of g's in standard errors",
    "test_loss": "test loss, likewise",
    "test_accuracy": "test accuracy in percent",
}
PEERS_EXPLAINED = """\
Methods of evosax see the loss alone, on all the data that the units learn from. One seed at a
time, compiled, each runs for the seconds that one seed of the tuned rule takes on the same
machine; its setting is chosen from six by the same three seeds that choose the arms' rates.
The best of each generation is judged as the arms are, and the best of those counts.
"""
TRIED_EXPLAINED = """\
Each row changes one setting of the tuned rule, or of the literal one, at the same number of
gradient evaluations and with its own best rate. In brackets: on functions how many times the
median final loss is lower than the best of g Adam runs'; on networks how far the mean
validation loss is above it, in standard errors.
"""


class Found(NamedTuple):
    """An arm's or a method's results on a task."""

    config: Mapping[str, Any]
    tuning: Mapping[str, Any]
    whole: Mapping[str, Any]  # what is of all seeds together
    runs: Sequence[Mapping[str, Any]]  # one a seed

    def measured(self, name: str = "loss") -> np.ndarray:
        """A measure of each seed; null, which is not finite, is infinite: float [seeds]."""
        values = as_floats([run[name] for run in self.runs])
        return np.where(np.isnan(values), np.inf, values)


class Results(dict[tuple[str, str], Found]):
    """By task and arm, in the order of the tasks: those that are finished."""

    def __init__(self, records: Records, run: str = "run", whole: str = "curves") -> None:
        parts: dict[tuple[str, str], dict[str, list[Any]]] = {}
        for record in records:
            key = record.key
            kind = "runs" if key.kind == run and key.seed is not None else key.kind
            parts.setdefault((key.task, key.arm), {}).setdefault(kind, []).append(record)
        for pair in sorted(parts, key=lambda pair: TASKS.index(pair[0])):
            part = parts[pair]
            if whole in part:
                results = {kind: [each.result for each in part[kind]] for kind in part}
                tuning = results.get("tuning", [{}])[0]
                config = part[whole][0].config
                self[pair] = Found(config, tuning, results[whole][0], results["runs"])

    def tasks(self, arm: str = BASELINE, end: str = "") -> list[str]:
        """Those that an arm has results on, whose names end so."""
        return [task for task, name in self if name == arm and task.endswith(end)]

    def networks(self) -> list[str]:
        """Those that the best of g has results on."""
        return [task for task in self.tasks() if task in NETWORKS]

    def arms(self, tasks: Sequence[str]) -> list[str]:
        """Those that have results on some of the tasks: MAIN, then the others by name."""
        known = {arm for task, arm in self if task in tasks}
        return [arm for arm in MAIN if arm in known] + sorted(known - set(MAIN))

    def label(self, arm: str, tasks: Sequence[str] = TASKS) -> str:
        """How an arm is called in tables and legends of some tasks."""
        named = ((each, task) for (task, name), each in self.items() if name == arm)
        config = next(each.config for each, task in named if task in tasks)
        return config["peer" if arm in PEERS else "arm"]["label"]

    def median(self, task: str, arm: str) -> float:
        """Of the final losses, which on functions are at least FLOOR."""
        middle = float(np.median(self[task, arm].measured()))
        return middle if task in NETWORKS else max(middle, FLOOR)

    def ratio(self, task: str, arm: str) -> float:
        """How many times lower the arm's median final loss is than the best of g's."""
        return self.median(task, BASELINE) / self.median(task, arm)

    def errors(self, task: str, arm: str, name: str = "loss") -> float:
        """How far the arm's mean is above the best of g's, in the difference's errors."""
        own, other = (self[task, each].measured(name) for each in (arm, BASELINE))
        return report.errors_above(own, other)

    def cell(self, task: str, arm: str) -> str:
        """A loss, and in brackets how it compares with the best of g's."""
        if task in NETWORKS:
            text = f"{self[task, arm].measured().mean():.4f} ({self.errors(task, arm):+.1f})"
        else:
            text = f"{self.median(task, arm):.2g} ({self.ratio(task, arm):.3g})"
        return text.split()[0] if arm == BASELINE else text

    def table(
        self,
        title: str,
        tasks: Sequence[str],
        cell: Callable[[str, str], str],
        arms: Sequence[str] = MAIN,
    ) -> Table:
        """A row a task, a column an arm that has results; empty where there are none."""
        arms = [arm for arm in arms if any((task, arm) in self for task in tasks)]
        rows = [
            [title_of(task), *(cell(task, arm) if (task, arm) in self else "" for arm in arms)]
            for task in tasks
        ]
        return Table(title, ["task", *(self.label(arm, tasks) for arm in arms)], rows)


def write(records: Records, figures_of: "Callable[[Results], Mapping[str, Figure]]") -> None:
    """Shows the tables; writes README.md and the pictures into the records' folder."""
    found, peers = Results(records), Results(records, "peer", "peer")
    if not found.tasks():
        raise ArgumentError(
            f"out is {str(records.folder)!r}, without records; call without --report first."
        )
    figures = figures_of(found)
    arms = [arm for arm in (TUNED, LITERAL) if found.tasks(arm)]
    bars = [report.bars_table(bars_of(found, arm), found.label(arm)) for arm in arms]
    sections = [
        _introduction(found),
        *report.written_by_hand(records.folder, "What was seen"),
        "## Bars\n", *itertools.chain(*bars),
        "## Final losses\n", *_loss_tables(found),
        *(_peer_sections(found, peers) if peers else []),
        "## What it took\n", _cost_table(found), _rates_table(found),
        *_tried_sections(found),
        "## Pictures\n", *(f"![{name.capitalize()}]({name}.png)\n" for name in figures),
    ]  # fmt: skip
    report.write(records.folder, "Gadam: the study", sections, figures)


def _introduction(found: Results) -> str:
    config = next(iter(found.values())).config
    conditions = [f"- {name}: {text}" for name, text in CONDITIONS.items()]
    networks = [f"- {found[task, BASELINE].config['title']}" for task in found.networks()]
    listed = "\n".join([*conditions, *networks])
    return (
        f"{len(found.tasks())} tasks, {config['seeds']} seeds; a seed's function, its "
        "minimum's place and its noise are the same for every arm. All arms have the same "
        "number of gradient evaluations and the same grid of rates; the rate is chosen by the "
        f"{config['chosen_by']} over {len(config['tuning_seeds'])} other seeds. Every arm "
        "keeps the best point that it judged: independent runs judge every unit after every "
        "epoch (on functions, after every step), a population the parents and the children of "
        f"each generation.\n\n{listed}\n\n"
        "Functions are judged by their values without noise; networks by the loss on all "
        f"validation data. A function's loss below {FLOOR:g} counts as {FLOOR:g}.\n"
    )


def bars_of(found: Results, arm: str) -> list[Bar]:
    """The bars for an arm, one per condition of the functions and one for networks."""
    bars = []
    for condition in CONDITIONS:
        if tasks := found.tasks(arm, f"-{JUDGED_AT}-{condition}"):
            reached = sum(found.ratio(task, arm) >= WANTED_RATIO for task in tasks)
            name = (
                f"functions in {JUDGED_AT} dimensions, {condition}: median final loss at "
                f"least {WANTED_RATIO:g} times lower than the best of g's"
            )
            measured, met = f"{reached} of {len(tasks)}", reached >= WANTED_FUNCTIONS
            bars.append(Bar(name, f"{WANTED_FUNCTIONS} of {len(FUNCTIONS)}", measured, met))
    if tasks := [task for task in found.tasks(arm) if task in NETWORKS]:
        within = sum(found.errors(task, arm) <= 1 for task in tasks)
        name = "networks: validation loss at most 1 standard error above the best of g's"
        wanted, measured = (f"{count} of {len(tasks)}" for count in (len(tasks), within))
        bars.append(Bar(name, wanted, measured, within == len(tasks)))
    return bars


def title_of(task: str) -> str:
    """A task's name in tables and pictures."""
    return task.replace("_", " ").replace("-", ", ")


def _loss_tables(found: Results) -> list[Table]:
    """Medians on functions, by condition, and means on networks."""
    tables = []
    for condition in CONDITIONS:
        if tasks := found.tasks(end=f"-{condition}"):
            title = (
                f"{condition.capitalize()}: median final loss, and how many times it is lower "
                "than that of the best of g"
            )
            tables.append(found.table(title, tasks, found.cell))

    def cell(task: str, arm: str, name: str) -> str:
        values = found[task, arm].measured(name)
        if name == "test_accuracy":
            return report.mean_and_spread(list(100 * values))
        text = report.mean_and_spread(list(values), 4)
        if arm == BASELINE or len(values) < 2:
            return text
        return f"{text} ({found.errors(task, arm, name):+.1f})"

    for name, what in NETWORK_TITLES.items() if found.networks() else []:
        title = f"Networks: {what}; mean ± standard deviation over the seeds"
        of_name = functools.partial(cell, name=name)
        tables.append(found.table(title, found.networks(), of_name))
    return tables


def _peer_sections(found: Results, peers: Results) -> list[Table | str]:
    """Losses at equal time, and what the methods chose and evaluated."""
    tasks = list(dict.fromkeys(task for task, _ in peers))
    found = copy.copy(found)
    found.update(peers)

    def spent(task: str, name: str) -> str:
        whole = peers[task, name].whole
        population, strength = whole["setting"].values()
        return (
            f"{population}, {strength:g}; {whole['judged']:,}; {whole['seconds']:.2f} of "
            f"{whole['allowed_seconds']:.2f} s"
        )

    losses = found.table(
        "Black-box methods, each for as long as the tuned rule takes: median final loss",
        tasks, lambda *pair: f"{found.median(*pair):.2g}", [TUNED, *PEERS],
    )  # fmt: skip
    settings = peers.table(
        "The setting that each chose (population, strength), its evaluations of the loss, and "
        "its seconds of those allowed",
        tasks, spent, list(PEERS),
    )  # fmt: skip
    return ["## Black-box methods at equal time\n", PEERS_EXPLAINED, losses, settings]


def _cost_table(found: Results) -> Table:
    def span(name: str, tasks: Sequence[str], arm: str) -> str:
        values = {found[task, arm].whole[name] for task in tasks if (task, arm) in found}
        return " to ".join(f"{end:,}" for end in sorted({min(values), max(values)}))

    functions = [task for task in found.tasks() if task not in NETWORKS]
    rows = [
        [f"{kind}: {found.label(arm, tasks)}", *(span(n, tasks, arm) for n in SPENT)]
        for kind, tasks in (("functions", functions), ("networks", found.networks()))
        for arm in found.arms(tasks)
        if arm in MAIN
    ]
    header = ["arm", "gradients", "losses, to judge"]
    return Table("Evaluations for one seed at one rate", header, rows)


def _rates_table(found: Results) -> Table:
    def cell(task: str, arm: str) -> str:
        tuning = found[task, arm].tuning
        edge = tuning["best"] in (tuning["rates"][0], tuning["rates"][-1])
        return f"{tuning['best']:g}{'*' if edge else ''}"

    return found.table(
        "Chosen rates: on functions in half-widths of the box (*: at the edge of those tried)",
        found.tasks(), cell,
    )  # fmt: skip


def _tried_sections(found: Results) -> list[Table | str]:
    """One setting changed at a time; nothing where there are no records of it."""
    groups = {f"functions, {how}": found.tasks(TUNED, f"-{how}") for how in CONDITIONS}
    groups["networks"] = [task for task in found.tasks(TUNED) if task in NETWORKS]
    sections: list[Table | str] = []
    for kind, known in groups.items():
        tasks = [task for task in known if set(found.arms([task])) - set(MAIN)]
        if tasks:
            cells = {
                arm: [found.cell(task, arm) if (task, arm) in found else "" for task in tasks]
                for arm in found.arms(tasks)
            }
            header = [title_of(task) for task in tasks]
            options = sorted([how, *cells[arm]] for arm, how in _options(found, tasks).items())
            rows = [[found.label(arm, tasks), *cells[arm]] for arm in cells]
            title = (
                "The optimizer state that a child starts with, and whether parents learn again"
            )
            sections += [
                f"### On {kind}\n",
                Table(title, ["inheritance, relearn", *header], options),
                Table("One setting changed at a time", ["arm", *header], rows),
            ]
    return ["## What was tried\n", TRIED_EXPLAINED, *sections] if sections else []


def _options(found: Results, tasks: Sequence[str]) -> dict[str, str]:
    """The arms that differ from the tuned rule in these two settings alone, and how."""
    configs = {arm: found[task, arm].config["arm"] for task, arm in found if task in tasks}

    def others(config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config) | {"label": "", "inheritance": "", "relearn": ""}

    return {
        arm: f"{config['inheritance']}, parents learn "
        f"{'again' if config['relearn'] else 'once'}{', tuned' if arm == TUNED else ''}"
        for arm, config in configs.items()
        if others(config) == others(configs[TUNED])
    }
