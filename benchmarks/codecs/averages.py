"""Moving averages that are encoded after every step, beside exact ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optabs.storage.codecs import CODECS
from optabs.storage.rounding import Salt, salted

COORDINATES = 2048  # of each seed
STEPS_OF_MEMORY = 3  # the simulated steps, in lengths 1 / (1 - decay) of the average
FEWEST_STEPS = 300
DECAYS, SPREADS, BLOCKS = (0.9, 0.99, 0.999), (0.0, 1.0, 2.0), (32, 64, 128, 256)
ROUNDINGS = ("nearest", "stochastic")
# A frozen entry is that of an average that stood still while its exact one moved this far.
MOVED = 0.05


def _student(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.t(key, 4.0, shape)


def _sparse(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size, present = jax.random.split(key)
    return jax.random.normal(size, shape) * jax.random.bernoulli(present, 0.01, shape)


Draw = Callable[[jax.Array, tuple[int, ...]], jax.Array]
GRADIENTS: dict[str, tuple[Draw, float]] = {  # and their standard deviation
    "normal": (jax.random.normal, 1.0),
    "student_t4": (_student, 2**0.5),
    "sparse": (_sparse, 0.1),  # one of 100 is not 0
}
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

    @property
    def name(self) -> str:
        """As it stands in a record's key."""
        return f"{self.gradients}, decay {self.decay}, spread {self.spread:g}"


class Kept(NamedTuple):
    """How the average is kept between the steps."""

    codec: str
    rounding: str
    block: int

    @property
    def label(self) -> str:
        """As it stands in tables."""
        block = f", {self.block}" if self.block else ""
        return f"{self.codec}{block}, {self.rounding}"


def everything(lengths: list[int]) -> list[Kept]:
    """All ways of keeping an average."""
    return [
        Kept(codec.name, rounding, block)
        for codec in CODECS.values()
        for block in (lengths if codec.blocks else [0])
        for rounding in ROUNDINGS
    ]


def suits(kept: Kept, setting: Setting) -> bool:
    """Whether a codec can hold the statistic: bfloat16 any, the others by their sign."""
    return kept.codec == "bfloat16" or CODECS[kept.codec].sizes == (
        setting.statistic != "mean"
    )


def measured(setting: Setting, kept: list[Kept], seeds: int) -> dict[str, Any]:
    """The errors of every way, over all coordinates of a seed: by label, float [seeds]."""
    exact, old, decoded, before = simulated(setting, tuple(kept), seeds)
    _, read, _ = STATISTICS[setting.statistic]
    wanted = read(exact)
    found = {}
    for index, way in enumerate(kept):
        given = read(decoded[index])
        if setting.statistic == "mean":
            error = np.abs(given - wanted) / _deviations(setting, seeds)
        else:
            error = np.abs(given - wanted) / np.maximum(wanted, 1e-30)
        moved = np.abs(exact - old) > MOVED * np.abs(old)
        stood = (decoded[index] == before[index]) & moved
        found[way.label] = {
            "median_error": _rounded(np.median(error, axis=1)),
            "90_percentile": _rounded(np.quantile(error, 0.9, axis=1)),
            "zeros": _rounded(np.mean((given == 0) & (wanted != 0), axis=1)),
            "frozen": _rounded(stood.sum(1) / np.maximum(moved.sum(1), 1)),
            "bias": _rounded((given - wanted).mean(1) / np.abs(wanted).mean(1)),
        }
    return found


def _deviations(setting: Setting, seeds: int) -> np.ndarray:
    """The standard deviation of a mean of gradients around 0, which may be near 0 itself."""
    _, deviation = GRADIENTS[setting.gradients]
    share = (1 - setting.decay) / (1 + setting.decay)
    return np.asarray(_scales(setting, seeds)) * deviation * share**0.5


def _scales(setting: Setting, seeds: int) -> jax.Array:
    """Of the coordinates: float32 [seeds, COORDINATES]."""
    drawn = jax.random.normal(jax.random.key(1), (seeds, COORDINATES))
    return jnp.exp(setting.spread * drawn)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def simulated(setting: Setting, kept: tuple[Kept, ...], seeds: int) -> tuple[np.ndarray, ...]:
    """Averages after many steps and half a memory before: exact and decoded, [ways, ...]."""
    memory = 1 / (1 - setting.decay)
    steps = max(FEWEST_STEPS, round(STEPS_OF_MEMORY * memory))
    middle = steps - max(1, round(memory / 2))
    run = _simulation(setting.statistic, setting.gradients, kept)
    scales = _scales(setting, seeds)
    start = jnp.zeros_like(scales)
    carry = (start, [_encode(way, start, None) for way in kept])
    old, before = run(carry, 0, middle, setting.decay, scales)
    exact, now = run((old, before), middle, steps, setting.decay, scales)
    return (
        np.asarray(exact), np.asarray(old),
        np.stack([_decode(way, node) for way, node in zip(kept, now, strict=True)]),
        np.stack([_decode(way, node) for way, node in zip(kept, before, strict=True)]),
    )  # fmt: skip


@functools.cache
def _simulation(statistic: str, gradients: str, kept: tuple[Kept, ...]) -> Callable[..., Any]:
    """Compiled: from one step to another, for any decay and scales."""
    measure, _, _ = STATISTICS[statistic]
    draw, _ = GRADIENTS[gradients]

    def run(carry: Any, first: Any, last: Any, decay: Any, scales: jax.Array) -> Any:
        def step(number: jax.Array, carry: Any) -> Any:
            exact, nodes = carry
            key = jax.random.fold_in(jax.random.key(2), number)
            size = measure(scales * draw(key, scales.shape))

            def folded(mean: jax.Array) -> jax.Array:
                return decay * mean + (1 - decay) * size

            salt = salted(number.astype(jnp.uint32), 0)
            nodes = [
                _encode(way, folded(_decode(way, node)), salt)
                for way, node in zip(kept, nodes, strict=True)
            ]
            return folded(exact), nodes

        return jax.lax.fori_loop(first, last, step, carry)

    return jax.jit(run)


def _encode(way: Kept, value: jax.Array, salt: Salt | None) -> Any:
    rounded = salt if way.rounding == "stochastic" else None
    return CODECS[way.codec].encode(value, way.block, rounded)


def _decode(way: Kept, node: Any) -> jax.Array:
    return CODECS[way.codec].decode(node)
