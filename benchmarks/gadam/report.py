"""The study's report: bars, losses, what was tried and pictures, all from the records."""

import copy
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gadam.program import PEERS
from benchmarks.gadam.results import FLOOR, Results, bars_of, title_of
from benchmarks.gadam.tasks import BASELINE, CONDITIONS, LITERAL, MAIN, NETWORKS, TUNED
from benchmarks.lab import report
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import Records, as_floats
from benchmarks.lab.report import Curve, Table, curves_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENERATIONS = 12  # of a lineage, as far as it is kept
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


def write(records: Records) -> None:
    """Shows the tables; writes README.md and the pictures into the records' folder."""
    found, peers = Results(records), Results(records, "peer", "peer")
    if not found.tasks():
        raise ArgumentError(
            f"out is {str(records.folder)!r}, without records; call without --report first."
        )
    figures = figures_of(found)
    arms = (arm for arm in (TUNED, LITERAL) if found.tasks(arm))
    bars = (report.bars_table(bars_of(found, arm), found.label(arm)) for arm in arms)
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
        [f"{kind}: {found.label(arm, tasks)}", span("gradients", *at), span("judged", *at)]
        for kind, tasks in (("functions", functions), ("networks", found.networks()))
        for arm in found.arms(tasks)
        if arm in MAIN and (at := (tasks, arm))
    ]
    title = "Evaluations for one seed at one rate"
    return Table(title, ["arm", "gradients", "losses, to judge"], rows)


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


def figures_of(found: Results) -> "dict[str, Figure]":
    """Of networks, and of functions in 30 dimensions or the highest there are."""
    functions = [task for task in found.tasks() if task not in NETWORKS]
    sizes = {int(task.split("-")[1]) for task in functions}
    size = 30 if 30 in sizes else max(sizes, default=0)
    tasks = [task for task in functions if f"-{size}-" in task] + found.networks()
    title = "Best loss so far: median and quartiles over the seeds"
    figures = {"curves": _curves(found, tasks, "quartiles", title)}
    grown = [(task, arm) for task in tasks for arm in (LITERAL, TUNED) if (task, arm) in found]
    if grown:
        figures["diversity"] = _curves(
            found, list(dict.fromkeys(task for task, _ in grown)), "diversity",
            "Root mean square distance of an entry from its mean over the population",
        )  # fmt: skip
        # One function and one network tell it.
        ends = {grown[0][0], next((task for task, _ in grown if task in NETWORKS), "")}
        figures["lineage"] = _lineages(found, [pair for pair in grown if pair[0] in ends])
    return figures


def _curves(found: Results, tasks: list[str], name: str, title: str) -> "Figure":
    panels = []
    for task in tasks:
        floor = FLOOR if task not in NETWORKS and name == "quartiles" else 0.0
        curves = []
        for arm in MAIN:
            whole = found[task, arm].whole if (task, arm) in found else {}
            if name in whole:
                values = np.maximum(np.atleast_2d(as_floats(whole[name])), floor)
                curves.append(Curve(found.label(arm, [task]), values, whole["looks"]))
        panels.append((title_of(task), curves))
    return curves_figure(
        panels, ylabel="", title=title, xlabel="gradient evaluations", columns=4, log=True,
        middle=np.median,
    )  # fmt: skip


def _lineages(found: Results, pairs: list[tuple[str, str]]) -> "Figure":
    from matplotlib.figure import Figure

    rows = -(-len(pairs) // 2)
    figure = Figure(figsize=(8.7, 1 + 2.8 * rows), layout="constrained")
    for axis, (task, arm) in zip(figure.subplots(rows, 2).flat, pairs, strict=False):
        first = found[task, arm].runs[0]
        survivors = np.array(first["survivors"])[:GENERATIONS]
        draw_lineage(axis, np.array(first["parents"])[:GENERATIONS], survivors)
        axis.set_title(f"{title_of(task)}: {found.label(arm, [task])}", fontsize="small")
    figure.suptitle(
        "Who descends from whom, the first seed: units by rank; lines from both parents to a "
        "child,\nthick where the unit itself survived; red: ancestors of the last one's best"
    )
    return figure


def edges_of(parents: np.ndarray, survivors: np.ndarray) -> list[tuple[int, int, bool]]:
    """From whom each survivor of one generation comes: (from, to, whether it is itself).

    Args:
      parents: int [g, 2], of each child.
      survivors: int [g], indices into the parents, then the children.
    """
    size = len(survivors)
    edges = []
    for place, who in enumerate(survivors.tolist()):
        if who < size:
            edges.append((who, place, True))
        else:
            edges += [(origin, place, False) for origin in set(parents[who - size].tolist())]
    return edges


def draw_lineage(axis: "Axes", parents: np.ndarray, survivors: np.ndarray) -> None:
    """Draws parents int [generations, g, 2] and survivors int [generations, g]."""
    from matplotlib.ticker import MaxNLocator

    edges = [edges_of(*rows) for rows in zip(parents, survivors, strict=True)]
    ancestors = {0}
    for number in range(len(edges), 0, -1):
        before = set()
        for start, end, itself in edges[number - 1]:
            dark = end in ancestors
            if dark:
                before.add(start)
            axis.plot(
                (number - 1, number), (start, end), color="C3" if dark else "0.8",
                lw=1.8 if itself else 0.7, zorder=2 if dark else 1,
            )  # fmt: skip
        ancestors = before
    units = range(survivors.shape[1])
    for number in range(len(edges) + 1):
        axis.plot([number] * len(units), units, ".", color="0.4", ms=3)
    axis.set(xlabel="generation", ylabel="unit, the best below")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
