"""The command `narrow`: whether optimizers train as well with their moments in few bits."""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax
import typer
from tqdm import tqdm

import optabs
from benchmarks import store
from benchmarks.contests import FULL, STATES
from benchmarks.dao_e.arms import Arm
from benchmarks.dao_e.program import measures_of, program_of, validation_loss
from benchmarks.dao_e.resnet import Architecture, resnet
from benchmarks.dao_e.settings import TUNING_SEEDS, best_rate, half_decade, tune
from benchmarks.lab import report, tasks_data
from benchmarks.lab.arguments import DataOption, names_of, positive, tasks_of
from benchmarks.lab.tasks import Task, classification, mlp, needed, transformer
from benchmarks.runs import kept_in

RESULTS = pathlib.Path("runs/narrow")
WIDTHS = (784, 256, 128, 10)
CHANNELS = (32, 64, 128)  # of the residual network's stages
BATCH = 64
GRID = tuple(range(-7, -2))  # half decades: rates from 0.000316 to 0.0316
MIN_SIZE = 256  # of an encoded leaf: these networks are small
MEASURES = {
    "validation_loss": "validation loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy in percent",
    "area": "mean training loss",
}
JUDGED, WANTED_BYTES = "adam_abs_8bit", 2.2

OPTIMIZERS: Mapping[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optabs.adam,
    "adam_abs": optabs.adam_abs,
}
ARMS: Mapping[str, tuple[str, str]] = {  # optimizer and how its state is kept
    name if state == FULL else f"{name}_{state}": (name, state)
    for name in OPTIMIZERS
    for state in (FULL, "8bit", "bfloat16")
}


def _perceptron(name: str, source: pathlib.Path | None) -> Task:
    title = f"MLP {'-'.join(map(str, WIDTHS))}, {name.replace('_', ' ')}"
    splits = tasks_data.whole(name, needed(name, source))
    return classification(title, mlp(*WIDTHS), splits, steps=2000, batch_size=BATCH)


def _residual(name: str, source: pathlib.Path | None) -> Task:
    net = resnet(Architecture(CHANNELS, 1, stem_stride=2), channels=3, classes=10)
    return classification(
        f"ResNet-8 of {'-'.join(map(str, CHANNELS))} channels, {name} at 16 x 16",
        net, tasks_data.pooled(name, needed(name, source)),
        steps=600, batch_size=BATCH, by_steps=True,
    )  # fmt: skip


TASKS: Mapping[str, Callable[[pathlib.Path | None], Task]] = {
    "mnist": lambda source: _perceptron("mnist", source),
    "fashion": lambda source: _perceptron("fashion_mnist", source),
    "cifar10": lambda source: _residual("cifar10", source),
    "transformer": lambda source: transformer(
        128, 2, "character transformer of width 128, Python's help"
    ),
}
NEED_IMAGES = ("mnist", "fashion", "cifar10")


class Plan(NamedTuple):
    """What is asked for."""

    seeds: int
    steps: int | None
    source: pathlib.Path | None
    folder: pathlib.Path


def narrow(
    tasks: Annotated[str, typer.Option(help=f"all, or some of {', '.join(TASKS)}")] = "",
    arms: Annotated[str, typer.Option(help=f"all, or some of {', '.join(ARMS)}")] = "",
    seeds: Annotated[int, typer.Option(help="reported runs of each arm")] = 5,
    steps: Annotated[
        int | None, typer.Option(help="in place of each task's own number")
    ] = None,
    data: DataOption = None,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Trains Adam and AdamABS with float32 and with narrow states, rates under a cosine.

    Each arm has the same grid of rates, chosen by the validation loss on seeds that are not
    reported. Finished records are kept; the same call goes on where it was interrupted.
    """
    plan = Plan(positive(seeds, "seeds"), steps, data, store.prepare_folder(out))
    if steps is not None:
        positive(steps, "steps")
    cells = [
        (task, arm)
        for task in tasks_of(tasks, TASKS, NEED_IMAGES, data)
        for arm in names_of(arms or ",".join(ARMS), "arms", ARMS)
    ]
    with kept_in(out), tqdm(cells, unit="record", dynamic_ncols=True, disable=None) as bar:
        for task, arm in bar:
            bar.set_postfix_str(f"{task} {arm}")
            make(task, arm, plan)
    write(out)
    typer.echo(f"tables: {out / 'narrow.md'}")


def arm_of(name: str) -> Arm:
    """An optimizer, its rate under a cosine decay to 0, and its state as the arm has it."""
    optimizer, state = ARMS[name]

    def build(task: Task, rates: Mapping[str, Any]) -> Any:
        rate = optax.cosine_decay_schedule(rates[name], task.steps)
        return stored(OPTIMIZERS[optimizer](rate), state)

    label = optimizer if state == FULL else f"{optimizer}, {state}"
    return Arm(label, build, (name,), {})


def stored(
    optimizer: optax.GradientTransformation, state: str
) -> optax.GradientTransformationExtraArgs:
    """An optimizer with its state so."""
    if state == FULL:
        return optax.with_extra_args_support(optimizer)
    return optabs.narrow_state(optimizer, STATES[state], min_size=MIN_SIZE)


def bytes_of(task: Task, arm: Arm) -> float:
    """Bytes of the optimizer's state for each parameter."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    state = jax.eval_shape(arm.build(task, dict.fromkeys(arm.experts, 1.0)).init, params)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return size / sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def make(name: str, arm_name: str, plan: Plan) -> None:
    """Makes a record and keeps it, unless it is there."""
    task, arm = TASKS[name](plan.source), arm_of(arm_name)
    if plan.steps is not None:
        task = task._replace(steps=plan.steps)
    config = {
        "task": name, "title": task.title, "arm": arm_name, "label": arm.label,
        "steps": task.steps, "min_size": MIN_SIZE, "seeds": plan.seeds,
        "grid": list(map(half_decade, GRID)), "tuning_seeds": TUNING_SEEDS,
    }  # fmt: skip
    path = plan.folder / "runs" / name / f"{arm_name}.json"
    if store.finished(path, config) is not None:
        return
    program = program_of(task, arm, test=True)
    rates, losses = tune(functools.partial(validation_loss, program), GRID)
    best = best_rate(rates, losses)
    runs = [measures_of(program([best], seed)) for seed in range(plan.seeds)]
    results = {
        "rate": best,
        "rates": rates,
        "tuning": losses,
        "bytes": bytes_of(task, arm),
        **{key: [run[key] for run in runs] for key in runs[0]},
    }
    record = {"config": config, "results": results, "environment": store.environment()}
    store.write_json(path, record)
    jax.clear_caches()


Records = Mapping[tuple[str, str], dict[str, Any]]


def write(folder: pathlib.Path) -> None:
    """Shows and writes the tables of all records of a folder."""
    found = store.read_all(folder / "runs")
    order = [(task, arm) for task in TASKS for arm in ARMS if (task, arm) in found]
    records = {place: found[place] for place in order}
    tables = [table_of(records, task) for task in dict.fromkeys(task for task, _ in records)]
    for table in tables:
        table.show()
    text = "\n".join([*(table.markdown() for table in tables), *verdicts(records), ""])
    store.write_bytes(folder / "narrow.md", text.encode())


def table_of(records: Records, task: str) -> report.Table:
    """A row an arm: its rate, bytes and measures, beside its float32 form."""
    own = {arm: record for (name, arm), record in records.items() if name == task}
    config = next(iter(own.values()))["config"]
    measures = {
        key: title
        for key, title in MEASURES.items()
        if not any(np.isnan(_values(record, key)).all() for record in own.values())
    }
    rows = []
    for record in own.values():
        results = record["results"]
        cells = [
            report.mean_and_spread(
                list(_values(record, key)), 2 if key == "test_accuracy" else 4
            )
            for key in measures
        ]
        label = record["config"]["label"]
        rows.append([label, f"{results['rate']:g}", f"{results['bytes']:.2f}", *cells])
    return report.Table(
        f"{config['title']}, {config['steps']} steps; {config['seeds']} seeds, mean ± "
        "standard deviation",
        ["state", "rate", "bytes a parameter", *measures.values()],
        rows,
    )


def verdicts(records: Records) -> list[str]:
    """For each narrow form, how far its validation loss is above that of float32."""
    lines = [
        "Validation loss above the float32 form's, in standard errors of the difference:\n"
    ]
    for (task, arm), record in records.items():
        optimizer, state = ARMS[arm]
        if state == FULL or (task, optimizer) not in records:
            continue
        above = report.errors_above(
            _values(record, "validation_loss"),
            _values(records[task, optimizer], "validation_loss"),
        )
        bar = ""
        if arm == JUDGED:
            size = record["results"]["bytes"]
            bar = (
                f" (wanted: at most 1, {_verdict(above <= 1)}); {size:.2f} bytes a parameter "
                f"(wanted: at most {WANTED_BYTES}, {_verdict(size <= WANTED_BYTES)})"
            )
        lines.append(f"- {task}, {record['config']['label']}: {above:+.1f}{bar}")
    return lines


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _values(record: Mapping[str, Any], key: str) -> np.ndarray:
    values = np.array(record["results"][key], float)
    return 100 * values if key == "test_accuracy" else values
