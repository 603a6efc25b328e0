"""What was tried: one setting of the rule changed at a time, and the options' defaults."""

from typing import Any

from benchmarks.gadam.arms import BASELINE, FUNCTION_ARMS, LITERAL, RESTARTS, TUNED
from benchmarks.gadam.records import (
    CONDITIONS,
    NETWORKS,
    Records,
    label_of,
    measured,
    median,
    ratio,
    standard_errors,
    tasks_of,
)
from benchmarks.lab import report

CHOICES = ("inheritance", "relearn")


def trial_sections(records: Records) -> list[str]:
    """Markdown; nothing where there are no records of trials."""
    usual = tuple(FUNCTION_ARMS)
    tried = [
        task
        for task in tasks_of(records, TUNED)
        if any(name not in usual for at, name in records if at == task)
    ]
    groups = {
        f"functions, {condition}": [task for task in tried if task.endswith(f"-{condition}")]
        for condition in CONDITIONS
    }
    groups["networks"] = [task for task in tried if task in NETWORKS]
    sections = []
    for kind, tasks in groups.items():
        if tasks:
            sections += [
                f"## On {kind}\n",
                _options_table(records, tasks).markdown(),
                _trials_table(records, tasks).markdown(),
            ]
    return ["# Gadam: what was tried\n", _explanation(), *sections] if sections else []


def _explanation() -> str:
    return (
        "Each row changes one setting of the tuned rule, or of the literal one, at the same "
        "number of gradient evaluations and with its own best rate. In brackets: on functions "
        "how many times the median final loss is lower than the best of g Adam runs'; on "
        "networks how far the mean validation loss is above it, in standard errors.\n"
    )


def _options_table(records: Records, tasks: list[str]) -> report.Table:
    tuned = records[tasks[0], TUNED]["config"]["arm"]
    rows = []
    for arm in dict.fromkeys(arm for task, arm in records if task in tasks):
        config = next(
            record["config"]["arm"]
            for (task, name), record in records.items()
            if name == arm and task in tasks
        )
        if _without(config, *CHOICES) == _without(tuned, *CHOICES):
            learns = "learn again" if config["relearn"] else "learn once"
            text = f"{config['inheritance']}, parents {learns}"
            mark = ", tuned" if arm == TUNED else ""
            rows.append([text + mark, *(_cell(records, task, arm) for task in tasks)])
    return report.Table(
        "The optimizer state that a child starts with, and whether parents learn again",
        ["inheritance, relearn", *map(_title, tasks)],
        sorted(rows),
    )


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in (*names, "label")}


def _trials_table(records: Records, tasks: list[str]) -> report.Table:
    known = {arm for task, arm in records if task in tasks}
    first = [arm for arm in (BASELINE, RESTARTS, LITERAL, TUNED) if arm in known]
    others = sorted(known - set(first))
    rows = [
        [label_of(records, arm, tasks), *(_cell(records, task, arm) for task in tasks)]
        for arm in [*first, *others]
    ]
    return report.Table("One setting changed at a time", ["arm", *map(_title, tasks)], rows)


def _title(task: str) -> str:
    return " ".join(task.replace("_", " ").split("-")[:2])


def _cell(records: Records, task: str, arm: str) -> str:
    if (task, arm) not in records:
        return ""
    if task in NETWORKS:
        text = f"{measured(records, task, arm).mean():.4f}"
        return (
            text if arm == BASELINE else f"{text} ({standard_errors(records, task, arm):+.1f})"
        )
    text = f"{median(records, task, arm):.2g}"
    return text if arm == BASELINE else f"{text} ({ratio(records, task, arm):.3g})"
