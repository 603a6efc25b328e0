"""The study's report: bars, losses, what was tried and pictures, all from the records."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gadam.program import PEERS
from benchmarks.gadam.tasks import BASELINE, CONDITIONS, LITERAL, MAIN, NETWORKS, TASKS, TUNED
from benchmarks.lab import report
from benchmarks.lab.functions import FUNCTIONS
from benchmarks.lab.records import Key, Records, as_floats
from benchmarks.lab.report import Bar, Curve, Measure, Table, curves_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR = 1e-4  # a function's final loss below it counts as it; float32 is no more exact
WANTED_RATIO, WANTED_FUNCTIONS = 10, 4  # in 30 dimensions
MEASURES = {
    "loss": Measure("validation loss"),
    "test_loss": Measure("test loss"),
    "test_accuracy": Measure("test accuracy in percent", 2, 100.0),
}
PICTURES = {  # of which curves, not drawn below what, under which title
    "curves": ("quartiles", FLOOR, "Best loss so far: median and quartiles over the seeds"),
    "diversity": (
        "diversity", 0.0,
        "Root mean square distance of an entry from its mean over the population",
    ),
}  # fmt: skip


class Results:
    """The records by task and arm, in the order of the tasks: those that are finished.

    A task needs the best of g, which everything is compared with.
    """

    def __init__(self, records: Records) -> None:
        wholes = [*records.select(kind="curves"), *records.select(kind="peer", seed=None)]
        compared = {key.task for key, *_ in wholes if key.arm == BASELINE}
        wholes = [each for each in wholes if each.key.task in compared]
        wholes.sort(key=lambda record: TASKS.index(record.key.task))
        self.wholes = {each.key[:2]: each for each in wholes}
        self.results = {record.key: record.result for record in records}

    def tasks(self, end: str | tuple[str, ...] = "", arm: str = BASELINE) -> list[str]:
        """Those that an arm has results on, whose names end so."""
        return [task for task, name in self.wholes if name == arm and task.endswith(end)]

    def label(self, task: str, arm: str) -> str:
        """How an arm is called in tables and legends."""
        config = self.wholes[task, arm].config
        return config.get("peer", config["arm"])["label"]

    def measured(self, task: str, arm: str, name: str = "loss") -> np.ndarray:
        """A measure of each seed; null, which is not finite, is infinite: float [seeds]."""
        key, config = self.wholes[task, arm][:2]
        kind = "run" if key.kind == "curves" else "peer"
        keys = [key._replace(kind=kind, seed=seed) for seed in range(config["seeds"])]
        return np.nan_to_num(as_floats([self.results[key][name] for key in keys]), nan=np.inf)

    def median(self, task: str, arm: str) -> float:
        """Of the final losses, at least FLOOR."""
        return max(float(np.median(self.measured(task, arm))), FLOOR)

    def ratio(self, task: str, arm: str) -> float:
        """How many times lower the arm's median final loss is than the best of g's."""
        return self.median(task, BASELINE) / self.median(task, arm)

    def errors(self, task: str, arm: str, name: str = "loss") -> float:
        """How far the arm's mean is above the best of g's, in the difference's errors."""
        own, other = (self.measured(task, each, name) for each in (arm, BASELINE))
        return report.errors_above(own, other)

    def cell(self, task: str, arm: str, name: str = "loss") -> str:
        """A measure, and in brackets how it compares with the best of g's."""
        if task in NETWORKS:
            values, measure = self.measured(task, arm, name), MEASURES[name]
            text = report.mean_and_spread(list(measure.factor * values), measure.digits)
            compared = f" ({self.errors(task, arm, name):+.1f})"
        else:
            text, compared = f"{self.median(task, arm):.2g}", f" ({self.ratio(task, arm):.3g})"
        return text if arm == BASELINE else text + compared

    def table(
        self, title: str, tasks: Sequence[str], cell: Callable[[str, str], str],
        arms: Sequence[str] = MAIN, by_arm: bool = False,
    ) -> list[Table]:  # fmt: skip
        """A row a task, a column an arm with results on some, or the other way; or none."""
        lines = [["", *map(title_of, tasks)]]
        for arm in arms:
            if known := [task for task in tasks if (task, arm) in self.wholes]:
                cells = (cell(task, arm) if task in known else "" for task in tasks)
                lines.append([self.label(known[0], arm), *cells])
        header, *rows = lines if by_arm else zip(*lines, strict=True)
        return [Table(title, header, rows)] if rows else []


def write(records: Records) -> None:
    """Shows the tables; writes README.md and the pictures into the records' folder."""
    found, folder = Results(records), records.folder
    figures = figures_of(found)
    sections = [
        *report.written_by_hand(folder, "What is compared"),
        *report.written_by_hand(folder, "What was seen"),
        *_tables(found),
        "## Pictures\n", *(f"![{name.capitalize()}]({name}.png)\n" for name in figures),
    ]  # fmt: skip
    report.write(folder, "Gadam: the study", sections, figures)


def _tables(found: Results) -> Iterator[Table | str]:
    yield "## Bars\n"
    for arm in (TUNED, LITERAL):
        if tasks := found.tasks(arm=arm):
            yield from report.bars_table(bars_of(found, arm), found.label(tasks[0], arm))

    yield "## Final losses\n"
    for how in CONDITIONS:
        title = f"{how.capitalize()}: median (how many times lower than the best of g's)"
        yield from found.table(title, found.tasks(how), found.cell)
    for name, measure in MEASURES.items():
        title = f"Networks: mean {measure.title} ± deviation (standard errors above best of g)"
        cell = functools.partial(found.cell, name=name)
        yield from found.table(title, found.tasks(NETWORKS), cell)

    def searched(task: str, arm: str) -> str:
        median, result = f"{found.median(task, arm):.2g}", found.wholes[task, arm].result
        if arm in PEERS:
            spent = "{population}, {strength:g}; {judged:,}; {seconds:.2f} of "
            spent += "{allowed_seconds:.2f} s"
            median += f" ({spent.format(**result['setting'], **result)})"
        return median

    if tasks := list(dict.fromkeys(task for task, arm in found.wholes if arm in PEERS)):
        yield "## Black-box methods at equal time\n"
        title = "Median final loss (population, strength; losses evaluated; seconds)"
        yield from found.table(title, tasks, searched, [TUNED, *PEERS])

    def rate(task: str, arm: str) -> str:
        tuning = found.results[Key(task, arm, kind="tuning")]
        best, rates = tuning["best"], tuning["rates"]
        return f"{best:g}{'*' if best in (rates[0], rates[-1]) else ''}"

    yield "## Chosen rates\n"
    units = {"functions, in half-widths of the box": CONDITIONS, "networks": NETWORKS}
    for kind, ends in units.items():
        title = f"On {kind} (*: at the edge of those tried)"
        yield from found.table(title, found.tasks(ends), rate)

    if others := sorted({arm for _, arm in found.wholes} - {*MAIN, *PEERS}):
        yield "## What was tried\n"
    for end in (*CONDITIONS, NETWORKS):
        tried = {task for arm in others for task in found.tasks(end, arm)}
        tasks = [task for task in found.tasks() if task in tried]
        title = f"One setting changed at a time, {'networks' if end == NETWORKS else end}"
        yield from found.table(title, tasks, found.cell, [*MAIN, *others], by_arm=True)


def bars_of(found: Results, arm: str) -> list[Bar]:
    """The bars for an arm, one per condition of the functions and one for networks."""
    bars = []
    for how in CONDITIONS:
        if tasks := found.tasks(f"-30-{how}", arm):
            reached = sum(found.ratio(task, arm) >= WANTED_RATIO for task in tasks)
            name = f"functions in 30 dimensions, {how}: median final loss at least "
            name += f"{WANTED_RATIO} times lower than the best of g's"
            measured, met = f"{reached} of {len(tasks)}", reached >= WANTED_FUNCTIONS
            bars.append(Bar(name, f"{WANTED_FUNCTIONS} of {len(FUNCTIONS)}", measured, met))
    if tasks := found.tasks(NETWORKS, arm):
        within, count = sum(found.errors(task, arm) <= 1 for task in tasks), len(tasks)
        name = "networks: validation loss at most 1 standard error above the best of g's"
        bars.append(Bar(name, f"{count} of {count}", f"{within} of {count}", within == count))
    return bars


def figures_of(found: Results) -> "dict[str, Figure]":
    """Of networks, and of functions in 30 dimensions, or of all tasks that there are."""
    judged = [task for task in found.tasks() if "-30-" in task or task in NETWORKS]
    figures = {}
    for name, (curve, lowest, title) in PICTURES.items():
        panels = []
        for task in judged or found.tasks():
            curves = []
            for arm in MAIN:
                whole = found.wholes[task, arm].result if (task, arm) in found.wholes else {}
                if curve in whole:
                    values = np.atleast_2d(as_floats(whole[curve])).clip(lowest)
                    curves.append(Curve(found.label(task, arm), values, whole["looks"]))
            panels.append((title_of(task), curves))
        if any(curves for _, curves in panels):
            figures[name] = curves_figure(
                panels, ylabel="", title=title, xlabel="gradient evaluations", columns=4,
                log=True, middle=np.median,
            )  # fmt: skip
    return figures


def title_of(task: str) -> str:
    """A task's name in tables and pictures."""
    return task.replace("_", " ").replace("-", ", ")
