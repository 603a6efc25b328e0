"""What a codec costs a moving average: its error, by statistic, spread and rounding."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer

from benchmarks.lab import report
from benchmarks.lab.arguments import OutOption, QuickOption, ReportOption, positive
from benchmarks.lab.block_codecs import BLOCK_CODECS
from benchmarks.lab.records import Key, Record, Records, opened, rounded
from benchmarks.lab.study import Unit, run_units
from optabs.storage.codecs import CODECS, decode, encode, ready, salted
from optabs.storage.eight_bits import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COORDINATES = 2048  # of each seed
STEPS_OF_MEMORY = 3  # the simulated steps, in lengths 1 / (1 - decay) of the average
FEWEST_STEPS = 300
DECAYS, SPREADS, BLOCKS = (0.9, 0.99, 0.999), (0.0, 1.0, 2.0), (32, 64, 128, 256)
DRAWN = 64  # the length of the blocks in the picture
ROUNDINGS = ("nearest", "stochastic")
MOVED = 0.05  # how far the exact average moved while a frozen one stood still


def _sparse(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size, present = jax.random.split(key)
    return jax.random.normal(size, shape) * jax.random.bernoulli(present, 0.01, shape)


GRADIENTS: dict[str, tuple[Callable[..., jax.Array], float]] = {  # and standard deviations
    "normal": (jax.random.normal, 1.0),
    "student_t4": (lambda key, shape: jax.random.t(key, 4.0, shape), 2**0.5),
    "sparse": (_sparse, 0.1),  # one of 100 is not 0
}
# What is averaged, how the average is read, and what is read.
STATISTICS: dict[str, tuple[Callable[[jax.Array], jax.Array], Callable[..., Any], str]] = {
    "mean_size": (jnp.abs, lambda mean: mean, "mean of |g|"),
    "mean_square": (jnp.square, jnp.sqrt, "root of the mean of g²"),
    "mean": (lambda g: g, lambda mean: mean, "mean of g"),
}


class Setting(NamedTuple):
    """What is simulated."""

    statistic: str
    gradients: str
    decay: float
    spread: float  # of the coordinates' scales, whose logarithms are normal


class Kept(NamedTuple):
    """How the average is kept between the steps."""

    codec: str
    rounding: str
    block: int  # 0 for the codecs of narrow_state, whose rows have ranges from the step before

    @property
    def label(self) -> str:
        """As it stands in tables."""
        block = f", {self.block}" if self.block else ""
        return f"{self.codec}{block}, {self.rounding}"

    @property
    def sizes(self) -> bool:
        """Whether it has nothing below 0."""
        return (BLOCK_CODECS if self.block else CODECS)[self.codec].sizes

    def first(self, value: jax.Array) -> Any:
        """An average as it is kept before the first step."""
        if self.block:
            return BLOCK_CODECS[self.codec].encode(value, self.block, None)
        return encode(CODECS[self.codec], value, Rows(), None)

    def next(self, node: Any, fold: Callable[[jax.Array], jax.Array], counter: Any) -> Any:
        """It after a step."""
        used = salted(counter, 0) if self.rounding == "stochastic" else None
        if self.block:
            return BLOCK_CODECS[self.codec].encode(fold(self.read(node)), self.block, used)
        node, ranges = ready(node, counter)
        return encode(CODECS[self.codec], fold(decode(node)), ranges, used)

    def read(self, node: Any) -> jax.Array:
        """The average, as it is read."""
        return BLOCK_CODECS[self.codec].decode(node) if self.block else decode(node)


SETTINGS = [
    Setting(*each) for each in itertools.product(STATISTICS, GRADIENTS, DECAYS, SPREADS)
]
WAYS = {
    kept.label: kept
    for names, blocks in ((CODECS, [0]), (BLOCK_CODECS, BLOCKS))
    for kept in itertools.starmap(Kept, itertools.product(names, ROUNDINGS, blocks))
}


def keys_of(setting: Setting) -> list[Key]:
    """One for each way: bfloat16 holds any statistic, the others by its sign."""
    statistic, gradients, decay, spread = setting
    return [
        Key(statistic, label, f"{gradients}, decay {decay}, spread {spread:g}")
        for label, way in WAYS.items()
        if way.codec == "bfloat16" or way.sizes == (statistic != "mean")
    ]


def measured(setting: Setting, kept: list[Kept], seeds: int) -> dict[str, Any]:
    """The errors of every way, over all coordinates of a seed: by label, float [seeds]."""
    exact, old, decoded, before = simulated(setting, tuple(kept), seeds)
    _, read, _ = STATISTICS[setting.statistic]
    wanted = read(exact)
    scale = np.maximum(wanted, 1e-30)
    if setting.statistic == "mean":
        # Its standard deviation around 0, near which it may be itself.
        share = (1 - setting.decay) / (1 + setting.decay)
        scale = scales_of(setting, seeds) * GRADIENTS[setting.gradients][1] * share**0.5
    moved = np.abs(exact - old) > MOVED * np.abs(old)
    found = {}
    for index, way in enumerate(kept):
        given = read(decoded[index])
        error = np.abs(given - wanted) / scale
        stood = (decoded[index] == before[index]) & moved
        measures = {
            "median_error": np.median(error, axis=1),
            "90_percentile": np.quantile(error, 0.9, axis=1),
            "zeros": np.mean((given == 0) & (wanted != 0), axis=1),
            "frozen": stood.sum(1) / np.maximum(moved.sum(1), 1),
            "bias": (given - wanted).mean(1) / np.abs(wanted).mean(1),
        }
        found[way.label] = {name: rounded(values) for name, values in measures.items()}
    return found


def scales_of(setting: Setting, seeds: int) -> np.ndarray:
    """Of the coordinates: float32 [seeds, COORDINATES]."""
    drawn = jax.random.normal(jax.random.key(1), (seeds, COORDINATES))
    return np.asarray(jnp.exp(setting.spread * drawn))


def simulated(setting: Setting, kept: tuple[Kept, ...], seeds: int) -> tuple[np.ndarray, ...]:
    """Averages after many steps and half a memory before: exact and decoded, [ways, ...]."""
    memory = 1 / (1 - setting.decay)
    steps = max(FEWEST_STEPS, round(STEPS_OF_MEMORY * memory))
    middle = steps - max(1, round(memory / 2))
    run = _simulation(setting.statistic, setting.gradients, kept)
    scales = scales_of(setting, seeds)
    zero = jnp.zeros_like(scales)
    start = (zero, [way.first(zero) for way in kept])
    old = run(start, 0, middle, setting.decay, scales)
    now = run(old, middle, steps, setting.decay, scales)
    decoded, before = (
        np.stack([way.read(node) for way, node in zip(kept, nodes, strict=True)])
        for _, nodes in (now, old)
    )
    return np.asarray(now[0]), np.asarray(old[0]), decoded, before


@functools.cache
def _simulation(statistic: str, gradients: str, kept: tuple[Kept, ...]) -> Callable[..., Any]:
    """Compiled: from one step to another, for any decay and scales."""
    measure, draw = STATISTICS[statistic][0], GRADIENTS[gradients][0]

    def run(carry: Any, first: Any, last: Any, decay: Any, scales: jax.Array) -> Any:
        def step(number: jax.Array, carry: Any) -> Any:
            exact, nodes = carry
            key = jax.random.fold_in(jax.random.key(2), number)
            size = measure(scales * draw(key, scales.shape))

            def folded(mean: jax.Array) -> jax.Array:
                return decay * mean + (1 - decay) * size

            counter = number.astype(jnp.uint32)
            nodes = [
                way.next(node, folded, counter) for way, node in zip(kept, nodes, strict=True)
            ]
            return folded(exact), nodes

        return jax.lax.fori_loop(first, last, step, carry)

    return jax.jit(run)


def unit_of(setting: Setting, seeds: int, ways: int | None = None) -> Unit:
    """A setting, with all or the first ways of keeping its average."""

    def errors(missing: Sequence[Key], done: Any) -> list[tuple[Key, Any]]:
        found = measured(setting, [WAYS[key.arm] for key in missing], seeds)
        return [(key, found[key.arm]) for key in missing]

    config = {**setting._asdict(), "seeds": seeds}
    return Unit(tuple(keys_of(setting)[:ways]), config, errors)


def command(
    seeds: Annotated[int, typer.Option(help=f"of {COORDINATES} coordinates each")] = 5,
    quick: QuickOption = False,
    only_report: ReportOption = False,
    out: OutOption = None,
) -> None:
    """The error of moving averages that are encoded after every step, by codec."""
    positive(seeds, "seeds")
    units = [unit_of(setting, seeds) for setting in SETTINGS]
    if quick:
        units = [unit_of(Setting("mean_size", "student_t4", 0.9, 1.0), min(seeds, 2), ways=6)]
    records = opened("codecs", out, only_report=only_report, quick=quick)
    if not only_report:
        run_units(units, records)
    known = [name for name in STATISTICS if records.select(task=name)]
    summaries = [summary_of(records, name) for name in known]
    figures = {"codecs": figure_of(records, known)}
    report.write(records.folder, "What a codec costs an average", summaries, figures)


def found_in(records: Records, statistic: str) -> list[tuple[Setting, dict[str, Record]]]:
    """The statistic's settings in the order of the study, with their records by way."""
    found = [
        (each, {key.arm: run for key in keys_of(each) if (run := records.get(key))})
        for each in SETTINGS
        if each.statistic == statistic
    ]
    return [(setting, runs) for setting, runs in found if runs]


def shared_by(settings: Sequence[Mapping[str, Record]]) -> list[str]:
    """The ways that all of these settings have records of, in the order of the study."""
    found = [label for label in WAYS if all(label in runs for runs in settings)]
    return found if settings else []


def summary_of(records: Records, statistic: str) -> report.Table:
    """A row a codec, the least error first, over all settings that leave no zeros."""
    own = [
        found
        for setting, found in found_in(records, statistic)
        # Of sparse gradients over a short memory most averages are almost 0.
        if setting.gradients != "sparse" or setting.decay >= 0.99
    ]
    rows = []
    for label in shared_by(own):
        errors, tails, biases, frozen = (
            np.array([100 * np.mean(np.abs(found[label].result[name])) for found in own])
            for name in ("median_error", "90_percentile", "bias", "frozen")
        )
        middle, tail = (float(np.exp(np.mean(np.log(each)))) for each in (errors, tails))
        cells = (middle, errors.max(), tail, biases.max(), frozen.max())
        rows.append((middle, [label, *(f"{cell:.2g}" for cell in cells)]))
    return report.Table(
        f"{STATISTICS[statistic][2]}, percent over {len(own)} settings (geometric means; the "
        "worst of them)",
        ["kept as", "median error", "worst", "90th percentile", "worst bias", "worst frozen"],
        [row for _, row in sorted(rows)],
    )


def figure_of(records: Records, statistics: Sequence[str]) -> "Figure":
    """Median errors by the spread of the coordinates, at the slowest decay."""
    panels = []
    for statistic in statistics:
        found = found_in(records, statistic)
        own = [each for each in found if each[0].gradients == "student_t4"][-len(SPREADS) :]
        curves = []
        for label in shared_by([runs for _, runs in own]):
            way = WAYS[label]
            if way.rounding == "stochastic" and way.block in (0, DRAWN):
                errors = [runs[label].result["median_error"] for _, runs in own]
                # Codes of sizes and of signed numbers have one colour.
                name = way.codec.removeprefix("u")
                name += ", ranges of its own" if way.block and way.codec in CODECS else ""
                spreads = [setting.spread for setting, _ in own]
                curves.append(report.Curve(name, 100 * np.array(errors).T, spreads))
        panels.append((STATISTICS[statistic][2], curves))
    return report.curves_figure(
        panels,
        ylabel="median error, percent",
        title=f"Student t4 gradients, slowest decay, blocks of {DRAWN}, stochastic rounding",
        xlabel="spread of the scales (ln)",
        log=True,
    )
