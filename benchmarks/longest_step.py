"""The command `longest_step`: how long a step from narrow moments may be."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from rich.progress import track

import optabs
from benchmarks import store
from benchmarks.lab import report
from benchmarks.lab.arguments import positive, some_of

RESULTS = pathlib.Path("runs/longest_step")
RATE = 1e-3
STEPS = 2000
BLOCK, BLOCKS = 64, 4  # entries, and blocks of each spread
SPREADS = 10.0 ** -np.arange(12.0)
UNIT = 1e6  # of the largest gradient, so that eps shortens no step
FULL = "float32"

Maker = Callable[[], optax.GradientTransformation]
OPTIMIZERS: Mapping[str, Maker] = {
    "adam": lambda: optabs.adam(RATE),
    "adam_steady": lambda: optabs.adam(RATE, steady=True),
    "adam_abs": lambda: optabs.adam_abs(RATE),
    "adam_abs_steady": lambda: optabs.adam_abs(RATE, steady=True),
    "nadam_abs": lambda: optabs.nadam_abs(RATE),
    "nadam_abs_steady": lambda: optabs.nadam_abs(RATE, steady=True),
    "rmsprop_abs": lambda: optabs.rmsprop_abs(RATE),
    "rmsprop_abs_steady": lambda: optabs.rmsprop_abs(RATE, steady=True),
    "optax.lion": lambda: optax.lion(RATE),
    "optax.adamw": lambda: optax.adamw(RATE),
}
FORMS: Mapping[str, Mapping[str, str]] = {
    "int8, uint8": {},
    "int8_square, uint8_fourth": {"mu": "int8_square", "nu": "uint8_fourth"},
}


def _spikes(noise: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.where(step % 89 == 0, 100, 1) * noise


def _sparse(noise: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.where(step % 100 == 0, noise, 0)


def _sleeping(noise: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.where(step // 300 % 2 == 0, noise, 0)


COURSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "constant": lambda noise, step: jnp.ones_like(noise),
    "noisy": lambda noise, step: noise,
    "sparse": _sparse,
    "spikes": _spikes,
    "sleeping": _sleeping,
}


def longest_step(
    optimizers: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(OPTIMIZERS)}")
    ] = "all",
    steps: Annotated[int, typer.Option(help="of each run")] = STEPS,
    seeds: Annotated[int, typer.Option(help="of the noise")] = 3,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """The longest step in 8 bits over the longest in float32, in blocks of uneven gradients.

    One entry of a block has a gradient of size 1, the others are smaller by a factor, the
    spread, from 1 to 1e-11; the course of the gradients is constant, noisy, sparse, noisy
    with spikes, or noisy and silent in turns.
    """
    chosen = some_of(optimizers, "optimizers", OPTIMIZERS)
    positive(steps, "steps")
    positive(seeds, "seeds")
    store.prepare_folder(out)
    results: dict[str, dict[str, Any]] = {}
    for name in track(chosen, description="longest_step"):
        results[name] = measured(OPTIMIZERS[name], steps, seeds)
        config = {"optimizer": name, "steps": steps, "seeds": seeds, "unit": UNIT}
        record = {
            "config": config, "results": results[name], "environment": store.environment(),
        }  # fmt: skip
        store.write_json(out / "runs" / f"{name}.json", record)
        jax.clear_caches()
    tables = [table_of(results, form) for form in FORMS]
    for table in tables:
        table.show()
    text = "\n".join(table.markdown() for table in tables)
    store.write_bytes(out / "longest_step.md", text.encode())
    typer.echo(f"tables: {out / 'longest_step.md'}")


def measured(make: Maker, steps: int, seeds: int) -> dict[str, Any]:
    """The ratios of every form and course: [seeds, spreads]."""
    full = [longest(make(), steps, seed) for seed in range(seeds)]
    found: dict[str, Any] = {}
    for form, codecs in FORMS.items():
        state = jax.eval_shape(make().init, jnp.zeros((1, BLOCK)))
        fields = {name for name in codecs if optax.tree.get_all_with_path(state, name)}
        kept = {name: codecs[name] for name in fields}
        narrow = optabs.narrow_state(make(), kept, block_size=BLOCK, min_size=1)
        runs = [longest(narrow, steps, seed) for seed in range(seeds)]
        found[form] = {
            course: [
                [float(f"{ratio:.4g}") for ratio in run[at] / exact[at]]
                for run, exact in zip(runs, full, strict=True)
            ]
            for at, course in enumerate(COURSES)
        }
    return found


def longest(optimizer: optax.GradientTransformation, steps: int, seed: int) -> np.ndarray:
    """The longest step of every course and spread: [courses, spreads]."""
    first = jnp.arange(BLOCK) == 0
    scales = jnp.where(first, 1.0, jnp.asarray(SPREADS, jnp.float32)[:, None]) * UNIT
    shape = (len(COURSES), len(SPREADS), BLOCKS, BLOCK)
    key = jax.random.key(seed)

    def body(state: Any, step: jax.Array) -> tuple[Any, jax.Array]:
        noise = jax.random.normal(jax.random.fold_in(key, step), shape[1:])
        courses = [course(noise, step) for course in COURSES.values()]
        grads = jnp.stack(courses) * scales[None, :, None]
        updates, state = optimizer.update(grads, state, jnp.zeros(shape))
        return state, jnp.max(jnp.abs(updates), axis=(2, 3))

    @jax.jit
    def run() -> jax.Array:
        state = optimizer.init(jnp.zeros(shape))
        return jnp.max(jax.lax.scan(body, state, jnp.arange(steps))[1], axis=0)

    return np.asarray(run())


def table_of(results: Mapping[str, Mapping[str, Any]], form: str) -> report.Table:
    """For each optimizer and course the largest ratio of all seeds and spreads."""
    rows = [
        [name, *(f"{np.max(found[form][course]):.3g}" for course in COURSES)]
        for name, found in results.items()
    ]
    return report.Table(
        f"The longest step from {form} over the longest from float32: the largest of all "
        "seeds and of spreads from 1 to 1e-11",
        ["optimizer", *COURSES],
        rows,
    )
