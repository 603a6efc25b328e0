"""The study's report: bars, losses, what was tried and pictures, all from the records."""

import pathlib

from benchmarks import store
from benchmarks.gadam import peer_study
from benchmarks.gadam.arms import BASELINE, FUNCTION_ARMS, LITERAL, TUNED
from benchmarks.gadam.pictures import curves_figure, diversity_figure, lineage_figure
from benchmarks.gadam.records import (
    FLOOR,
    Records,
    bars_of,
    functions_of,
    label_of,
    measured,
    median,
    networks_of,
    ratio,
    read,
    standard_errors,
    tasks_of,
)
from benchmarks.gadam.tasks import CONDITIONS
from benchmarks.gadam.trials import trial_sections
from benchmarks.lab import report
from benchmarks.lab.arguments import ArgumentError

ARMS = tuple(FUNCTION_ARMS)
PEERS_EXPLAINED = """\
Methods of evosax see the loss alone, on all the data that the units learn from. One seed at a
time, compiled, each runs for the seconds that one seed of the tuned rule takes on the same
machine; its setting is chosen from six by the same three seeds that choose the arms' rates.
The best of each generation is judged as the arms are, and the best of those counts.
"""


def write(folder: pathlib.Path) -> None:
    """Prints the main tables; writes README.md, tried/README.md and the pictures."""
    records = read(folder)
    if not tasks_of(records):
        raise ArgumentError(
            f"out is {str(folder)!r}, which has no records; call without --report first."
        )
    bars, losses = bars_table(records), loss_tables(records)
    for table in [*bars, *losses]:
        table.show()
    sections = [
        _introduction(records),
        "## Bars\n",
        *(table.markdown() for table in bars),
        "## Final losses\n",
        *(table.markdown() for table in losses),
        *_peers(records, folder),
        "## What it took\n",
        cost_table(records).markdown(),
        rates_table(records).markdown(),
        *_pictures(records, folder),
    ]
    store.write_bytes(folder / "README.md", "\n".join(sections).encode())
    tried = trial_sections(records)
    if tried:
        store.write_bytes(folder / "tried" / "README.md", "\n".join(tried).encode())


def _introduction(records: Records) -> str:
    config = next(iter(records.values()))["config"]
    return "\n".join(
        [
            "# Gadam: the study",
            "",
            f"{len(tasks_of(records))} tasks, {config['seeds']} seeds; a seed's function, its "
            "minimum's place and its noise are the same for every arm. All arms have the same "
            "number of gradient evaluations and the same grid of rates; the rate is chosen by "
            f"the median over {len(config['tuning_seeds'])} other seeds. Every arm keeps the "
            "best point that it judged: independent runs judge every unit after every epoch "
            "(on functions, after every step), a population the parents and the children of "
            "each generation.",
            "",
            *(f"- {name}: {text}" for name, text in CONDITIONS.items()),
            "",
            "Functions are judged by their values without noise; networks by the loss on all "
            f"validation data. A function's loss below {FLOOR:g} counts as {FLOOR:g}.",
            "",
        ]
    )


def bars_table(records: Records) -> list[report.Table]:
    """The bars of the tuned rule and of the literal one."""
    header = ["bar", "wanted", "measured", ""]
    return [
        report.Table(
            label_of(records, arm, tasks_of(records, arm)),
            header,
            [
                [bar.name, bar.wanted, bar.measured, "met" if bar.met else "**missed**"]
                for bar in bars_of(records, arm)
            ],
        )
        for arm in (TUNED, LITERAL)
        if tasks_of(records, arm)
    ]


def loss_tables(records: Records) -> list[report.Table]:
    """Medians on functions, by condition, and means on networks."""
    tables = []
    for condition in CONDITIONS:
        tasks = functions_of(records, condition)
        if tasks:
            tables.append(_function_table(records, condition, tasks))
    if networks_of(records):
        tables += _network_tables(records)
    return tables


def _function_table(records: Records, condition: str, tasks: list[str]) -> report.Table:
    arms = [arm for arm in ARMS if any((task, arm) in records for task in tasks)]
    rows = []
    for task in tasks:
        function, dimensions, _ = task.split("-")
        cells = []
        for arm in arms:
            if (task, arm) not in records:
                cells.append("")
                continue
            text = f"{median(records, task, arm):.2g}"
            times = "" if arm == BASELINE else f" ({ratio(records, task, arm):.3g})"
            cells.append(text + times)
        rows.append([f"{function.replace('_', '-')}, {dimensions}", *cells])
    return report.Table(
        f"{condition.capitalize()}: median final loss, and how many times it is lower than "
        "that of the best of g",
        ["function, dimensions", *(label_of(records, arm, tasks) for arm in arms)],
        rows,
    )


def _network_tables(records: Records) -> list[report.Table]:
    arms = [
        arm for arm in ARMS if any((task, arm) in records for task in networks_of(records))
    ]
    titles = {
        "final": "validation loss, and how far above the best of g's in standard errors",
        "test_loss": "test loss, likewise",
        "test_accuracy": "test accuracy in percent",
    }
    tables = []
    for key, title in titles.items():
        rows = [
            [
                records[task, BASELINE]["config"]["title"],
                *(_network_cell(records, task, arm, key) for arm in arms),
            ]
            for task in networks_of(records)
        ]
        tables.append(
            report.Table(
                f"Networks: {title}; mean ± standard deviation over the seeds",
                ["network", *(label_of(records, arm, networks_of(records)) for arm in arms)],
                rows,
            )
        )
    return tables


def _network_cell(records: Records, task: str, arm: str, key: str) -> str:
    if (task, arm) not in records:
        return ""
    values = measured(records, task, arm, key)
    if key == "test_accuracy":
        return report.mean_and_spread(list(100 * values))
    text = report.mean_and_spread(list(values), 4)
    if arm == BASELINE or len(values) < 2:
        return text
    return f"{text} ({standard_errors(records, task, arm, key):+.1f})"


def cost_table(records: Records) -> report.Table:
    """Evaluations for one seed, by kind of task."""
    rows = []
    for kind, tasks in (
        ("functions", [t for c in CONDITIONS for t in functions_of(records, c)]),
        ("networks", networks_of(records)),
    ):
        for arm in ARMS:
            own = [records[task, arm]["results"] for task in tasks if (task, arm) in records]
            if own:
                rows.append(
                    [
                        f"{kind}: {label_of(records, arm, tasks)}",
                        _range([each["gradients"] for each in own]),
                        _range([each["losses"] for each in own]),
                    ]
                )
    return report.Table(
        "Evaluations for one seed at one rate",
        ["arm", "gradients", "losses, to judge"],
        rows,
    )


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def rates_table(records: Records) -> report.Table:
    """The chosen rates."""
    arms = [arm for arm in ARMS if tasks_of(records, arm)]
    rows = []
    for task in tasks_of(records):
        cells = []
        for arm in arms:
            results = records.get((task, arm), {}).get("results")
            edge = "*" if results and results["at_edge"] else ""
            cells.append(f"{results['rate']:g}{edge}" if results else "")
        rows.append([task.replace("-", ", "), *cells])
    return report.Table(
        "Chosen rates: on functions in half-widths of the box (*: at the edge of those tried)",
        ["task", *(label_of(records, arm, tasks_of(records)) for arm in arms)],
        rows,
    )


def _peers(records: Records, folder: pathlib.Path) -> list[str]:
    peers = read(folder, "peers")
    if not peers:
        return []
    lines = [table.markdown() for table in peer_study.tables(records, peers)]
    return ["## Black-box methods at equal time\n", PEERS_EXPLAINED, *lines]


def _pictures(records: Records, folder: pathlib.Path) -> list[str]:
    drawn = {
        "curves": (curves_figure(records), "Convergence: median and quartiles"),
        "diversity": (diversity_figure(records), "Diversity over the generations"),
        "lineage": (lineage_figure(records), "Who descends from whom"),
    }
    lines = ["## Pictures\n"]
    for name, (figure, caption) in drawn.items():
        if figure is not None:
            store.write_bytes(folder / f"{name}.png", report.png(figure))
            lines.append(f"![{caption}]({name}.png)\n")
    return lines
