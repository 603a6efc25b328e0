"""The time that a step takes to compile, and the lines of its program, by the leaves."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import typer
from rich.progress import track

import optabs
from benchmarks import store
from benchmarks.lab import report, timing
from benchmarks.lab.arguments import numbers_of, positive, some_of

RESULTS = pathlib.Path("runs/compile_time")
RATE = 1e-3
LEAVES = "8,16,32,62,150"
RIVAL = "optax.adam"

Maker = Callable[[], optax.GradientTransformation]

MAKERS: Mapping[str, Maker] = {
    RIVAL: lambda: optax.adam(RATE),
    "adam_abs": lambda: optabs.adam_abs(RATE),
    "narrow_state": lambda: optabs.narrow_state(optax.adam(RATE), min_size=16),
    "dao_e": lambda: optabs.dao_e(RATE),
    "dao_e_uniform": lambda: optabs.dao_e(RATE, controller=optabs.Controller.uniform()),
    "dao_e_one_expert": lambda: optabs.dao_e(experts={"adam": optabs.adam(RATE)}),
}


def compile_time(
    leaves: Annotated[
        str, typer.Option(help="numbers of small arrays, separated by commas")
    ] = LEAVES,
    optimizers: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(MAKERS)}; {RIVAL} is added")
    ] = "all",
    rounds: Annotated[int, typer.Option(help="compilations of each, in turns")] = 3,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Times the compilation of one step of an optimizer against that of optax.adam's.

    A step is update and optax.apply_updates, for vectors of 16 and matrices of 16 x 16
    numbers. Each compilation is a fresh one, in the same process.
    """
    numbers = numbers_of(leaves, "leaves")
    names = some_of(optimizers, "optimizers", MAKERS)
    names = list(dict.fromkeys([RIVAL, *names]))
    positive(rounds, "rounds")
    store.prepare_folder(out)
    environment = store.environment()
    rows = []
    for number in track(numbers, description="compile_time"):
        results = measure({name: MAKERS[name] for name in names}, number, rounds)
        config = {"leaves": number, "optimizers": names, "rounds": rounds}
        record = {"config": config, "results": results, "environment": environment}
        store.write_json(out / "runs" / f"{number}.json", record)
        rows += [_row(number, name, results) for name in names]
    table = report.Table(
        "Seconds to compile a step (median of fresh compilations in turns), over those of "
        f"{RIVAL}, and lines of the optimized program",
        ["optimizer", "arrays", "seconds", "ratio [quartiles]", "lines", "lines an array"],
        rows,
    )
    table.show()
    store.write_bytes(out / "compile_time.md", table.markdown().encode())
    typer.echo(f"table: {out / 'compile_time.md'}")


def measure(makers: Mapping[str, Maker], leaves: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round, ratios to the first of the makers, and lines.

    Args:
      makers: optimizers by name.
      leaves: the number of arrays.
      rounds: compilations of each.
    """
    lines: dict[str, int] = {}

    def compiled(name: str) -> float:
        jax.clear_caches()
        lowered = lowered_step(makers[name](), leaves)
        programs: list[jax.stages.Compiled] = []
        seconds = timing.seconds_of(lambda: programs.append(lowered.compile()))
        lines[name] = (programs[0].as_text() or "").count("\n")
        return seconds

    clocks = {name: functools.partial(compiled, name) for name in makers}
    seconds = timing.in_turns(clocks, rounds, float("inf"))
    rival = next(iter(makers))
    return {
        "seconds": seconds,
        "median_seconds": timing.medians(seconds),
        "ratio": {
            name: timing.ratio(seconds[name], seconds[rival])._asdict() for name in makers
        },
        "lines": lines,
    }


def lowered_step(optimizer: optax.GradientTransformation, leaves: int) -> jax.stages.Lowered:
    """A step on vectors and matrices in turns, ready to be compiled."""
    params = {
        f"w{index}": jax.ShapeDtypeStruct((16, 16) if index % 2 else (16,), jnp.float32)
        for index in range(leaves)
    }

    def step(grads: Any, params: Any, state: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step).lower(params, params, jax.eval_shape(optimizer.init, params))


def _row(leaves: int, name: str, results: Mapping[str, Any]) -> list[str]:
    lines = results["lines"][name]
    return [
        name,
        str(leaves),
        f"{results['median_seconds'][name]:.2f}",
        str(timing.Spread(**results["ratio"][name])),
        str(lines),
        f"{lines / leaves:.0f}",
    ]
