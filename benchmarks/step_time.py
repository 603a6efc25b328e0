"""The time of one optimizer step against optax's, and the operations behind it."""

import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import typer
from rich.progress import track

from benchmarks import arrays, mixture_time, store, torch_peer
from benchmarks.contests import CONTESTS, FULL, RATE, STATES, Contest, contests_of
from benchmarks.lab import report, timing
from benchmarks.lab.arguments import ArgumentError, choice_of, names_of, positive
from benchmarks.lab.timing import MODES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = pathlib.Path("runs/step_time")
SIZES = f"1e4,1e5,1e6,1.6e7,1e8,{arrays.RESNET}"
COPY = "copy"  # of as many bytes as the optimizer has to move
TORCH = "torch.optim.AdamW, fused"
GRADIENTS = (FULL, "bfloat16")


def measure(
    contest: Contest,
    name: str,
    shapes: list[tuple[int, ...]],
    rounds: int,
    seconds: float,
    *,
    gradients: str = FULL,
    torch: str | None = None,
) -> dict[str, Any]:
    """Times an optimizer, its rivals and a plain copy in turns, on leaves of given shapes.

    Args:
      contest: the optimizer and its rivals.
      name: of the optimizer.
      shapes: of the parameters, float32.
      rounds: measurements of each.
      seconds: after which no new round begins.
      gradients: their dtype.
      torch: the device on which PyTorch's fused AdamW is a further rival; None: it is none.
    """
    makers = {f"optabs.{name}": contest.ours, **contest.rivals}
    parameters = sum(map(math.prod, shapes))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    grads = [
        jax.random.normal(key, shape, jnp.dtype(gradients))
        for key, shape in zip(keys, shapes, strict=True)
    ]
    runners: dict[str, timing.Timed] = {}
    costs, must_move = {}, {}
    for side, make in makers.items():
        optimizer = make()
        params = [jnp.zeros(shape) for shape in shapes]
        carry = (params, jax.jit(optimizer.init)(params))
        runner = timing.Runner(timing.step_of(optimizer), carry, grads)
        costs[side] = timing.cost_of(runner.step, parameters)
        runners[side] = runner
        must_move[side] = timing.tree_bytes(grads) + 2 * timing.tree_bytes(carry)
    ours = f"optabs.{name}"
    # It reads and writes each byte once, so its array is half of the traffic.
    copied = jnp.zeros(max(1, must_move[ours] // 8))
    runners[COPY] = timing.Runner(lambda x, one: x + one, copied, jnp.ones([]))
    del params, carry, copied, runner  # a donated array that is still named is kept alive
    rivals = list(contest.rivals)
    if torch is not None:
        runners[TORCH] = torch_peer.AdamW(shapes, RATE, torch)
        rivals.append(TORCH)

    results: dict[str, Any] = {
        "parameters": parameters,
        "leaves": len(shapes),
        "must_move_bytes": {side: count / parameters for side, count in must_move.items()},
        "cost": {side: cost._asdict() for side, cost in costs.items()},
    }
    for mode, repeats, times in timing.in_modes(runners, rounds, seconds, alike=True):
        results[mode] = {
            "repeats": repeats[ours],
            "seconds": times,
            "median_seconds": timing.medians(times),
            "ratio": {
                rival: timing.ratio(times[ours], times[rival])._asdict() for rival in rivals
            },
            "share_of_copy": timing.ratio(times[COPY], times[ours])._asdict(),
        }
    return results


def step_time(
    sizes: Annotated[
        str | None,
        typer.Option(
            help="parameters in one array, or the arrays of a network: "
            f"{' or '.join(arrays.TREES)}; default: {SIZES}, and {mixture_time.SIZES} for "
            f"{mixture_time.DAO_E}",
            show_default=False,
        ),
    ] = None,
    optimizers: Annotated[
        str,
        typer.Option(
            "--optimizers",
            "--optimizer",
            help=f"all, or some of {', '.join(CONTESTS)}; or {mixture_time.DAO_E}",
        ),
    ] = "all",
    state: Annotated[
        str, typer.Option(help=f"how moments are kept: {FULL} or {', '.join(STATES)}")
    ] = FULL,
    gradients: Annotated[
        str, typer.Option(help=f"dtype of the gradients: {' or '.join(GRADIENTS)}")
    ] = FULL,
    torch: Annotated[
        bool, typer.Option("--torch", help="PyTorch's fused AdamW is timed, too")
    ] = False,
    rounds: Annotated[int, typer.Option(help="measurements of each contender, in turns")] = 15,
    seconds: Annotated[
        float, typer.Option(help="per comparison; after these, only 3 rounds are completed")
    ] = 20.0,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Times one step of each optimizer against optax's and against a plain copy.

    Gradients are given; parameters and state are donated. 1e8 parameters take about 6 GB.

    DAO-E is timed against optax.adam and against its experts' own steps (1e8 parameters
    take about 20 GB), and inside the training of the networks among the sizes.
    """
    known = [*CONTESTS, mixture_time.DAO_E]
    names = (
        list(CONTESTS) if optimizers == "all" else names_of(optimizers, "optimizers", known)
    )
    choice_of(state, "state", (FULL, *STATES))
    choice_of(gradients, "gradients", GRADIENTS)
    if torch and gradients != FULL:
        raise ArgumentError(
            f"gradients is {gradients!r}, but PyTorch's have their parameters' dtype; leave "
            "out one of gradients and torch."
        )
    device = None
    if torch:
        torch_peer.load_torch()  # a missing package is said before anything is timed
        device = torch_peer.device_like(jax.default_backend())
    known_here = contests_of(state)
    place_of = dict(zip(CONTESTS, known_here, strict=True))
    contests = [place_of[name] for name in names if name in CONTESTS]
    shapes, mixture_shapes = (
        arrays.shapes_of(default if sizes is None else sizes)
        for default in (SIZES, mixture_time.SIZES)
    )
    positive(rounds, "rounds")
    if not seconds > 0:
        raise ArgumentError(f"seconds is {seconds}; pass a number above 0.")
    store.prepare_folder(out)
    if contests:
        chosen = {name: known_here[name] for name in contests}
        options = {"gradients": gradients, "torch": device}
        _report(_contests(chosen, shapes, rounds, seconds, out, options), out)
    if mixture_time.DAO_E in names:
        mixture_time.time_mixture(mixture_shapes, rounds, seconds, out)


def _contests(
    contests: Mapping[str, Contest],
    shapes: Mapping[str, list[tuple[int, ...]]],
    rounds: int,
    seconds: float,
    out: pathlib.Path,
    options: Mapping[str, Any],
) -> "Results":
    environment = store.environment()
    results: dict[str, dict[str, Any]] = {size: {} for size in shapes}
    cells = [(size, name) for size in shapes for name in contests]
    for size, name in track(cells, description="step_time"):
        config = {
            "size": size, "optimizer": name, "rounds": rounds, "seconds": seconds, **options,
        }  # fmt: skip
        found = measure(contests[name], name, shapes[size], rounds, seconds, **options)
        results[size][name] = found
        record = {"config": config, "results": found, "environment": environment}
        store.write_json(timing.record_path(out, size, name), record)
        jax.clear_caches()
    return results


Results = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _report(results: Results, out: pathlib.Path) -> None:
    tables = [_cost_table(results)]
    tables += [_ratio_table(results, mode) for mode in MODES]
    tables += [_copy_table(results, mode) for mode in MODES]
    counted = "counts" if timing.roots_are_transcendental() else "does not count"
    note = (
        f"XLA's analysis for {jax.default_backend()} {counted} a square root as "
        "transcendental; the column 'roots' counts sqrt and rsqrt in the optimized program."
    )
    for table in tables:
        table.show()
    typer.echo(note)
    text = "\n".join([*(table.markdown() for table in tables), note, ""])
    store.write_bytes(out / "step_time.md", text.encode())
    report.save_figure(_figure(results), out / "step_time.png")
    typer.echo(f"tables: {out / 'step_time.md'}\nfigure: {out / 'step_time.png'} and .svg")


def _cost_table(results: Results) -> report.Table:
    size = list(results)[-1]
    rows = {}
    for name, found in results[size].items():
        for side, cost in found["cost"].items():
            seconds = found["call"]["median_seconds"][side]
            # An optimizer that several comparisons share keeps its own one's time.
            if side not in rows or side == f"optabs.{name}":
                rows[side] = [
                    side,
                    *(f"{cost[key]:.2f}" for key in ("flops", "transcendentals", "roots")),
                    f"{found['must_move_bytes'][side]:.1f}",
                    *(f"{cost[key]:.1f}" for key in ("bytes_accessed", "temporary_bytes")),
                    f"{cost['kernels']} ({cost['copies']})",
                    f"{1e6 * seconds:.1f}",
                ]
    return report.Table(
        f"Cost of a step per parameter at {size}: what XLA counts, the roots in its program, "
        "bytes that have to be moved, that are moved and that are temporary, passes over an "
        "array (copies); and microseconds per step",
        ["", "flops", "transc.", "roots", "needed", "moved", "temp.", "passes", "µs"],
        list(rows.values()),
    )


def _ratio_table(results: Results, mode: str) -> report.Table:
    rows = []
    for name, first in next(iter(results.values())).items():
        for rival in first[mode]["ratio"]:
            found = [results[size][name][mode]["ratio"][rival] for size in results]
            rows.append([f"{name} / {rival}", *(str(timing.Spread(**x)) for x in found)])
    return report.Table(
        f"Time of a step over the rival's, {MODES[mode]}: median and quartiles; below 1 is "
        "faster",
        ["", *results],
        rows,
    )


def _copy_table(results: Results, mode: str) -> report.Table:
    rows = []
    for name in next(iter(results.values())):
        found = [results[size][name][mode]["share_of_copy"] for size in results]
        rows.append([name, *(str(timing.Spread(**x)) for x in found)])
    return report.Table(
        f"Share of the speed of a plain copy of the bytes to move, {MODES[mode]}",
        ["optimizer", *results],
        rows,
    )


def _figure(results: Results) -> "Figure":
    """Per optimizer and size: time over optax's, and the share of a copy's speed."""
    from matplotlib.figure import Figure

    names = list(next(iter(results.values())))
    figure = Figure(figsize=(12, 2.5 + 0.55 * len(names)))
    axes = figure.subplots(2, len(MODES), sharey=True, squeeze=False)
    for column, (mode, caption) in enumerate(MODES.items()):
        for size, found in results.items():
            shares = [timing.Spread(**found[name][mode]["share_of_copy"]) for name in names]
            # optax's optimizer is the first rival.
            ratios = [next(iter(found[name][mode]["ratio"].values())) for name in names]
            offset = 0.11 * (list(results).index(size) - (len(results) - 1) / 2)
            for row, points in enumerate(([timing.Spread(**x) for x in ratios], shares)):
                timing.draw(axes[row][column], points, offset, size)
        axes[0][column].set_xlabel(f"time over optax's, {caption}")
        axes[1][column].set_xlabel(f"share of a copy's speed, {caption}")
    timing.finish(figure, axes, names, "One optimizer step (median and quartiles)")
    return figure
