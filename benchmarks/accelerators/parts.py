"""What waits for a GPU, in order of worth: commands, each with a time limit of its own."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import typer

import benchmarks
from benchmarks.accelerators import archive
from benchmarks.lab import report
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import Record, prepare_folder, read
from benchmarks.lab.study import Interrupted
from benchmarks.lab.timing import median

ROOT = pathlib.Path(benchmarks.__file__).parents[1]
TOY_SECONDS = 30.0  # of a part at toy sizes
RESERVED = 15.0  # seconds for the start and the summary
GRACE = 10.0  # of a part's seconds: to end in once it is told so
PROBE = """
import importlib.util, json, jax
device = jax.devices()[0]
print(json.dumps({"platform": device.platform, "device": device.device_kind,
                  "jax": jax.__version__, "torch": bool(importlib.util.find_spec("torch"))}))
"""


class Part(NamedTuple):
    """A command, its limit, and what it is at toy sizes."""

    title: str
    seconds: float  # that it may take; it is begun where as many are left
    line: str  # of `python -m benchmarks`
    toy: str  # "" where there is none that is quick, or no other than another part's
    data: str = ""  # the data set that it reads, if any


_RESNET = "dao_e_cifar10 --settings 'crop, flip, cosine rate' --seeds 1"
PARTS: Mapping[str, Part] = {
    "steps_8bit": Part(
        "a step at 1e8 and 1e9 parameters with moments in 8 bits; optax's, PyTorch's, a copy",
        75, "timing step --sizes 1e8,1e9 --optimizers adamw_abs --state 8bit",
        "timing step --sizes 1e4 --optimizers adamw_abs --state 8bit --quick",
    ),
    "steps_bfloat16": Part(
        "the same with moments in bfloat16",
        65, "timing step --sizes 1e8,1e9 --optimizers adamw_abs --state bfloat16",
        "timing step --sizes 1e4 --optimizers adamw_abs --state bfloat16 --quick",
    ),
    "mnist_256": Part(
        "MNIST's table of OptimABS, batches of 256",
        105, "optimabs --tasks mnist-256 --seeds 1",
        "optimabs --tasks mnist-256 --arms adam --seeds 1 --steps 10 --quick", "mnist",
    ),
    "resnet18": Part(
        "ResNet-18 on CIFAR-10 by DAO-E and by Adam, 10 epochs",
        160,
        f"{_RESNET} --tasks cifar10-resnet18-all-b128-e100 --arms dao_e,adam "
        "--steps 1170",
        f"{_RESNET} --tasks cifar10-resnet8-all-b64-e12 --arms dao_e --steps 1", "cifar10",
    ),
    "dao_e": Part(
        "a step of DAO-E at 1.6e7 parameters",
        55, "timing dao_e --sizes 1.6e7", "timing dao_e --sizes 1e6 --quick",
    ),
    "population": Part(
        "populations that learn and evolve",
        50, "timing population", "timing population --quick",
    ),
    "steps": Part(
        "a step of every optimizer at 1e8 parameters",
        90, "timing step --sizes 1e8", "timing step --sizes 1e4 --optimizers sgd --quick",
    ),
    "epoch": Part(
        "an epoch of MNIST in JAX and in PyTorch",
        60, "timing epoch", "", "mnist",
    ),
    "dao_e_resnet18": Part(
        "DAO-E's share of ResNet-18's training step",
        240, "timing dao_e --sizes resnet18", "",
    ),
    "mnist": Part(
        "MNIST's table, smaller batches and more seeds",
        600, "optimabs --tasks mnist-256,mnist-128,mnist-64 --seeds 2", "", "mnist",
    ),
}  # fmt: skip


class Outcome(NamedTuple):
    """What became of a part."""

    state: str
    seconds: float | None = None
    command: Sequence[str] = ()


def run(minutes: float, data: pathlib.Path | None, out: pathlib.Path) -> None:
    """Runs the parts that fit, each in a process of its own; writes a summary after each.

    Raises:
      ArgumentError: JAX finds no device.
      DataError: data that are no archive and no folder.
      Interrupted: by Ctrl-C.
    """
    end = time.monotonic() + 60 * minutes - RESERVED
    out = prepare_folder(out).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = None if data is None else archive.unpacked(data, pathlib.Path(scratch))
        folder = None if unpacked is None else unpacked.resolve()
        device = probe()
        toy = device["platform"] == "cpu"
        where = "this CPU, at toy sizes: no GPU was found" if toy else device["device"]
        typer.echo(f"{minutes:g} minutes on {where}, jax {device['jax']}")
        seconds = {name: TOY_SECONDS if toy else part.seconds for name, part in PARTS.items()}
        reasons = {name: left_out(name, folder, device) for name in PARTS}
        waiting = [name for name in PARTS if not reasons[name]]
        outcomes: dict[str, Outcome] = {}
        for name, part in PARTS.items():
            waiting = [each for each in waiting if each != name]
            left, others = end - time.monotonic(), [seconds[each] for each in waiting]
            limit = limit_of(seconds[name], others, left)
            if not limit:
                reasons[name] = reasons[name] or (
                    f"left out: it needs {seconds[name]:g} s, fewer were left"
                )
            if reasons[name]:
                outcomes[name] = Outcome(reasons[name])
            else:
                typer.echo(f"\n{name}: {part.title}")
                outcomes[name] = call(command_of(part, toy, folder, out), limit)
            typer.echo(f"{name}: {outcomes[name].state}")
            text = [NOTE, *sections(outcomes, out)]
            title = f"What waited for a GPU, run on {where}"
            report.write(out, title, text, show=len(outcomes) == len(PARTS))


def limit_of(needed: float, waiting: Sequence[float], left: float) -> float:
    """Seconds that a part may take, or 0 where it does not fit.

    That is what it needs, and what those that wait, in their order, leave over.
    """
    if needed > left:
        return 0.0
    spare = left - needed
    for each in waiting:
        spare -= each if each <= spare else 0
    return needed + spare


def probe() -> dict[str, Any]:
    """The device that JAX finds, seen by a process that ends: it would keep its memory."""
    found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ArgumentError(f"JAX finds no device ({last[:150]}); set JAX_PLATFORMS=cpu.")
    device: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return device


def left_out(name: str, folder: pathlib.Path | None, device: Mapping[str, Any]) -> str:
    """Why a part cannot be run here at all."""
    if PARTS[name].data and folder is None:
        return f"left out: needs the images of {PARTS[name].data}; pass --data"
    if device["platform"] == "cpu" and not PARTS[name].toy:
        return "left out: it has no toy size"
    if name == "epoch" and not device["torch"]:
        return "left out: PyTorch is not installed"
    return ""


def command_of(
    part: Part, toy: bool, folder: pathlib.Path | None, out: pathlib.Path
) -> list[str]:
    """Its arguments, with the folder of its study's results."""
    words = shlex.split(part.toy if toy else part.line)
    source = ["--data", str(folder)] if part.data else []
    return ["-m", "benchmarks", *words, *source, "--out", str(out / words[0])]


def call(command: Sequence[str], limit: float) -> Outcome:
    """Runs a command; one that takes longer is told to end, and what it has saved is kept."""
    started = time.monotonic()
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    # What was started in the background may ignore Ctrl-C, and its children with it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([sys.executable, *command], env=os.environ | own)
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        code = process.wait(max(limit - GRACE, 0))
        state = "whole" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # as Ctrl-C, on which records are closed
        state = f"stopped at its limit of {limit:.0f} s; what was finished is kept"
        _ended(process)
    except KeyboardInterrupt:
        _ended(process)
        raise Interrupted("Stopped; what was finished is kept.") from None
    return Outcome(state, time.monotonic() - started, command)


def _ended(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


NOTE = """\
Each part is a command in a process of its own. What it finished is in its study's folder;
where it was stopped, `python -m benchmarks STUDY --report --out FOLDER` makes the tables of
that, on any machine.
"""


def sections(outcomes: Mapping[str, Outcome], out: pathlib.Path) -> Iterator[Any]:
    """What became of each part, and how fast a step and a copy moved their bytes."""
    rows = []
    for name, outcome in outcomes.items():
        seconds = "-" if outcome.seconds is None else f"{outcome.seconds:.0f}"
        called = shlex.join(["python", *outcome.command]) if outcome.command else "-"
        rows.append([name, PARTS[name].title, outcome.state, seconds, f"`{called}`"])
    yield report.Table(
        "Parts, in order of worth",
        ["part", "what", "state", "seconds", "command"], rows,
    )  # fmt: skip
    steps = [record for record in read(out / "timing") if record.key.kind == "step"]
    if steps:
        yield report.Table(
            "One step, called from Python: milliseconds (median), GB/s of the bytes that have "
            "to be moved, and its share of the speed of a plain copy",
            ["parameters, optimizer, state, side", "ms", "GB/s", "share of copy"],
            [row for record in steps for row in _speeds(record)],
        )


def _speeds(record: Record) -> Iterator[list[str]]:
    result, key = record.result, record.key
    needed = result["must_move_bytes"]
    copied = next(iter(needed.values()))
    times = {side: median(each) for side, each in result["call"]["seconds"].items()}
    speeds = {
        side: needed.get(side, copied) * result["parameters"] / seconds / 1e9
        for side, seconds in times.items()
    }
    for side, seconds in times.items():
        named = ", ".join((key.task, key.arm, key.setting, side))
        share = f"{speeds[side] / speeds['copy']:.2f}"
        yield [named, f"{1e3 * seconds:.3f}", f"{speeds[side]:.0f}", share]
