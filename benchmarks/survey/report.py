"""The survey study's tables, from its records."""

import pathlib

import numpy as np

from benchmarks import store
from benchmarks.lab import report
from benchmarks.survey.records import (
    Record,
    Records,
    label_of,
    measured,
    of_problem,
    over_rates,
    problems_of,
)

NEAR = 2.0  # a rate forgives where its result is within this factor of the best one's


def write_tables(records: Records, titles: dict[str, str], folder: pathlib.Path) -> None:
    """Prints the tables and writes them into `survey.md`."""
    tables = [_overview(records), _forgiving(records)]
    tables += [
        _of_problem(of_problem(records, problem), title) for problem, title in titles.items()
    ]
    for table in tables:
        table.show()
    text = "\n".join(table.markdown() for table in tables)
    store.write_bytes(folder / "survey.md", text.encode())


def _overview(records: Records) -> report.Table:
    problems = problems_of(records)
    names = list(dict.fromkeys(name for _, name in records))
    rows = [
        [label_of(name)]
        + [_steps(records[at, name]) if (at, name) in records else "" for at in problems]
        for name in names
    ]
    return report.Table(
        "Steps until the loss is at its target and stays there: median over the reported "
        "seeds, with the share of them that arrived where it is not all; - where half or "
        "more did not",
        ["optimizer", *(problem.replace("_", " ") for problem in problems)],
        rows,
    )


def _forgiving(records: Records) -> report.Table:
    problems = problems_of(records)
    names = list(dict.fromkeys(name for _, name in records))
    tried = len(next(iter(records.values()))["config"]["rates"])
    rows = []
    for name in names:
        own = {at: records[at, name] for at in problems if (at, name) in records}
        counts = {at: _near(record) for at, record in own.items()}
        best = [record["results"]["rate"] for record in own.values()]
        summary = [f"{np.mean(list(counts.values())):.1f}", f"{min(best):g} to {max(best):g}"]
        if len(own) < len(problems):
            summary = ["", ""]
        rows.append([label_of(name), *(str(counts.get(at, "")) for at in problems), *summary])
    return report.Table(
        f"How many of the {tried} rates, half decades apart, are within a factor {NEAR:g} of "
        "the optimizer's own best (of the measure by which its rate is chosen; median over "
        "the tuning seeds; 0 where no rate arrives), and the chosen rates' range",
        [
            "optimizer",
            *(problem.replace("_", " ") for problem in problems),
            "mean",
            "chosen rates",
        ],
        rows,
    )


def _near(record: Record) -> int:
    judged = record["config"]["judged_by"]
    key = "tuning_steps" if judged == "steps" else "tuning_final_loss"
    _, values = over_rates(record, key)
    return int((np.isfinite(values) & (values <= NEAR * values.min())).sum())


def _of_problem(records: dict[str, Record], title: str) -> report.Table:
    first = next(iter(records.values()))
    config = first["config"]
    tested = "test_accuracy" in first["results"]
    rows = []
    for name, record in records.items():
        results = record["results"]
        rate = f"{results['rate']:g}" + ("*" if results["at_edge"] else "")
        steps = measured(record, "steps_to_target")
        row = [
            label_of(name),
            rate,
            f"{np.isfinite(steps).sum()}/{len(steps)}",
            _median(steps),
            *_losses(measured(record, "final_loss")),
        ]
        if tested:
            row.append(report.mean_and_spread(list(100 * measured(record, "test_accuracy"))))
        rows.append(row)
    chosen = "fewest steps" if config["judged_by"] == "steps" else "lowest final loss"
    return report.Table(
        f"{title[0].upper()}{title[1:]}: {config['steps']} steps, {len(config['seeds'])} "
        f"seeds, rate of {chosen} on {len(config['tuning_seeds'])} other seeds (* at an edge "
        f"of the tried ones); target {config['share']:g} of the loss at the start; median "
        "steps, and the final loss's median, lowest and highest"
        + ("; test accuracy in percent, mean ± standard deviation" if tested else ""),
        ["optimizer", "rate", "arrived", "steps", "final loss", "lowest", "highest"]
        + (["test accuracy"] if tested else []),
        rows,
    )


def _steps(record: Record) -> str:
    steps = measured(record, "steps_to_target")
    arrived = int(np.isfinite(steps).sum())
    text = _median(steps)
    return text if text == "-" or arrived == len(steps) else f"{text} ({arrived}/{len(steps)})"


def _median(values: np.ndarray) -> str:
    median = np.median(values)
    return f"{median:.0f}" if np.isfinite(median) else "-"


def _losses(values: np.ndarray) -> list[str]:
    return [
        f"{value:.2g}" if np.isfinite(value) else "diverged"
        for value in (np.median(values), values.min(), values.max())
    ]
