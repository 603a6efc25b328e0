"""The longest step from narrow moments over the longest from float32."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

import optabs
from benchmarks.lab import report
from benchmarks.lab.arguments import OutOption, QuickOption, ReportOption, positive, some_of
from benchmarks.lab.block_codecs import kept_in_blocks
from benchmarks.lab.records import Key, Records, opened, rounded
from benchmarks.lab.study import Unit, run_units

RATE = 1e-3
STEPS, QUICK_STEPS = 2000, 60
BLOCK, BLOCKS = 64, 4  # entries of a row or block, and rows of each spread
SPREADS = 10.0 ** -np.arange(12.0)
UNIT = 1e6  # of the largest gradient, so that eps shortens no step

OPTIMIZERS: Mapping[str, optax.GradientTransformation] = {
    "adam": optabs.adam(RATE),
    "adam_steady": optabs.adam(RATE, steady=True),
    "adam_abs": optabs.adam_abs(RATE),
    "adam_abs_steady": optabs.adam_abs(RATE, steady=True),
    "nadam_abs": optabs.nadam_abs(RATE),
    "nadam_abs_steady": optabs.nadam_abs(RATE, steady=True),
    "rmsprop_abs": optabs.rmsprop_abs(RATE),
    "rmsprop_abs_steady": optabs.rmsprop_abs(RATE, steady=True),
    "optax.lion": optax.lion(RATE),
    "optax.adamw": optax.adamw(RATE),
}
FORMS: Mapping[str, Mapping[str, str]] = {
    "int8, uint8": {},
    "int8_square, uint8_fourth": {"mu": "int8_square", "nu": "uint8_fourth"},
}
COURSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "constant": lambda noise, step: jnp.ones_like(noise),
    "noisy": lambda noise, step: noise,
    "sparse": lambda noise, step: jnp.where(step % 100 == 0, noise, 0),
    "spikes": lambda noise, step: jnp.where(step % 89 == 0, 100, 1) * noise,
    "sleeping": lambda noise, step: jnp.where(step // 300 % 2 == 0, noise, 0),
}


def command(
    optimizers: Annotated[
        str, typer.Option(help=f"all, or some of {', '.join(OPTIMIZERS)}")
    ] = "all",
    seeds: Annotated[int, typer.Option(help="of the noise")] = 3,
    quick: QuickOption = False,
    only_report: ReportOption = False,
    out: OutOption = None,
) -> None:
    """The longest step in 8 bits over the longest in float32, in rows of uneven gradients.

    One entry of a row has a gradient of size 1, the others are smaller by a factor, the
    spread, from 1 to 1e-11; the course of the gradients is constant, noisy, sparse, noisy
    with spikes, or noisy and silent in turns.
    """
    chosen = some_of(optimizers, "optimizers", OPTIMIZERS)
    positive(seeds, "seeds")
    if quick:
        chosen, seeds = chosen[:1], min(seeds, 2)
    records = opened("longest_step", out, only_report=only_report, quick=quick)
    if not only_report:
        steps = QUICK_STEPS if quick else STEPS
        run_units([unit_of(name, steps, seeds) for name in chosen], records)
    tables = [table_of(records, form) for form in FORMS]
    report.write(records.folder, "The longest step from narrow moments", tables)


def unit_of(name: str, steps: int, seeds: int) -> Unit:
    """An optimizer, in every form and on every course."""
    keys = tuple(
        Key(course, name, form, seed=seed)
        for form, course, seed in itertools.product(FORMS, COURSES, range(seeds))
    )
    config = {"steps": steps, "unit": UNIT, "spreads": SPREADS}
    return Unit(keys, config, functools.partial(_ratios, OPTIMIZERS[name], steps))


def _ratios(
    optimizer: optax.GradientTransformation, steps: int, missing: Sequence[Key], done: Any
) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    seeds = sorted({key.seed or 0 for key in missing})
    full = longest(optimizer, steps, seeds)
    state = jax.eval_shape(optimizer.init, jnp.zeros((1, BLOCK)))
    for form, codecs in FORMS.items():
        fields = {each for each in codecs if optax.tree.get_all_with_path(state, each)}
        kept = {each: codecs[each] for each in fields}
        narrow: optax.GradientTransformation = optabs.narrow_state(optimizer, min_size=1)
        if codecs:
            narrow = kept_in_blocks(optimizer, kept, BLOCK)
        ratios = longest(narrow, steps, seeds) / full
        for key in missing:
            if key.setting == form:
                own = ratios[seeds.index(key.seed or 0), list(COURSES).index(key.task)]
                yield key, {"ratio": rounded(own)}


def longest(
    optimizer: optax.GradientTransformation, steps: int, seeds: Sequence[int]
) -> np.ndarray:
    """The longest step of every seed, course and spread: [seeds, courses, spreads]."""
    first = jnp.arange(BLOCK) == 0
    scales = jnp.where(first, 1.0, jnp.asarray(SPREADS, jnp.float32)[:, None]) * UNIT
    shape = (len(COURSES), len(SPREADS), BLOCKS, BLOCK)

    @jax.jit
    def run(seed: int) -> jax.Array:
        def body(state: Any, step: jax.Array) -> tuple[Any, jax.Array]:
            key = jax.random.fold_in(jax.random.key(seed), step)
            noise = jax.random.normal(key, shape[1:])
            courses = [course(noise, step) for course in COURSES.values()]
            grads = jnp.stack(courses) * scales[None, :, None]
            updates, state = optimizer.update(grads, state, jnp.zeros(shape))
            return state, jnp.max(jnp.abs(updates), axis=(2, 3))

        state = optimizer.init(jnp.zeros(shape))
        return jnp.max(jax.lax.scan(body, state, jnp.arange(steps))[1], axis=0)

    return np.stack([run(seed) for seed in seeds])


def table_of(records: Records, form: str) -> report.Table:
    """For each optimizer and course the largest ratio of all seeds and spreads."""

    def cell(name: str, course: str) -> str:
        runs = records.select(task=course, arm=name, setting=form)
        return f"{np.max([run.result['ratio'] for run in runs]):.3g}" if runs else "-"

    title = (
        f"The longest step from {form} over the longest from float32: the largest of all "
        "seeds and of spreads from 1 to 1e-11"
    )
    names = {name: name for name in OPTIMIZERS if records.select(arm=name)}
    return report.grid(title, "optimizer", names, {each: each for each in COURSES}, cell)
