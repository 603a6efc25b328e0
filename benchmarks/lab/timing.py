"""Times programs in turns, and reads what the compiler says that they cost."""

import functools
import math
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_ROUNDS = 3
SHORTEST = 0.02  # seconds: a shorter measurement is repeated, so that the clock is no part

MODES = {"call": "called from Python", "loop": "inside a compiled loop"}

_INSTRUCTION = re.compile(r"= (?P<shape>\([^)]*\)|\S+) (?P<opcode>[a-z][\w-]*)\(")
_KERNELS = ("fusion", "copy", "call", "custom-call")


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Cost(NamedTuple):
    """What one compiled step costs, per parameter."""

    flops: float
    transcendentals: float  # as XLA counts them; `roots_are_transcendental` says what
    roots: float  # sqrt and rsqrt in the optimized program
    bytes_accessed: float  # all passes over memory, temporary arrays included
    temporary_bytes: float  # arrays that live during the step only
    kernels: int  # passes over an array, copies included
    copies: int  # those of them that only copy


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: a slow moment of the machine slows both."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def in_turns(
    contenders: Mapping[str, Callable[[], float]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """What each contender returns, round by round, each round in another order.

    No new round begins once so many seconds have passed and there are enough of them.
    """
    names = list(contenders)
    results: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(contenders[name]())
    return results


def seconds_of(run: Callable[[], Any]) -> float:
    """What one call takes until its arrays are there."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def step_of(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """One step: (params, state), gradients and what `update` is told -> (params, state)."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: tuple[Any, Any], grads: Any, **told: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(grads, state, params, **told)
        return optax.apply_updates(params, updates), state

    return step


class Timed(Protocol):
    """What is timed in MODES."""

    def call(self, repeats: int) -> float:
        """Seconds per step, called from Python."""

    def inside(self, repeats: int) -> float:
        """Seconds per step inside one compiled loop."""


class Runner:
    """A step compiled twice: to be called from Python, and inside a compiled loop."""

    def __init__(self, step: Callable[..., Any], carry: Any, grads: Any) -> None:
        self.carry, self.grads = carry, grads
        self.step = jax.jit(step, donate_argnums=0).lower(carry, grads).compile()
        self._step = step

    @functools.cached_property
    def loop(self) -> jax.stages.Compiled:
        """So many steps in one program, compiled when it is first wanted."""

        def loop(carry: Any, grads: Any, count: int) -> Any:
            def body(_: Any, carry: Any) -> Any:
                # Without it, what depends on the gradient alone would leave the loop.
                carry, fresh = jax.lax.optimization_barrier((carry, grads))
                return self._step(carry, fresh)

            return jax.lax.fori_loop(0, count, body, carry)

        return jax.jit(loop, donate_argnums=0).lower(self.carry, self.grads, 1).compile()

    def call(self, repeats: int) -> float:
        """Seconds per step, called from Python one after the other."""
        started = time.perf_counter()
        for _ in range(repeats):
            self.carry = self.step(self.carry, self.grads)
        jax.block_until_ready(self.carry)
        return (time.perf_counter() - started) / repeats

    def inside(self, repeats: int) -> float:
        """Seconds per step inside one compiled loop."""
        loop = self.loop
        started = time.perf_counter()
        self.carry = jax.block_until_ready(loop(self.carry, self.grads, repeats))
        return (time.perf_counter() - started) / repeats


def repeats_of(measure: Callable[[int], float]) -> int:
    """How often to repeat a measurement for it to last; warms it up, too."""
    measure(1)
    repeats = 1
    while (estimate := measure(repeats)) * repeats < SHORTEST / 4 and repeats < 4096:
        repeats *= 4
    return max(1, math.ceil(SHORTEST / estimate))


def in_modes(
    runners: Mapping[str, Timed], rounds: int, seconds: float, *, alike: bool
) -> Iterator[tuple[str, dict[str, int], dict[str, list[float]]]]:
    """Times runners in turns, in one of MODES after the other.

    Args:
      runners: by name.
      rounds: measurements of each.
      seconds: after which no new round begins.
      alike: whether all repeat their step equally often in a measurement. Where some are
        many times slower than others, each often enough takes less time.

    Yields:
      The mode, the repeats, and the seconds per step of each runner, round by round.
    """
    for mode in MODES:
        timers = {
            side: runner.call if mode == "call" else runner.inside
            for side, runner in runners.items()
        }
        repeats = {side: repeats_of(timer) for side, timer in timers.items()}
        if alike:
            repeats = dict.fromkeys(repeats, max(repeats.values()))
        runs = {
            side: functools.partial(timer, repeats[side]) for side, timer in timers.items()
        }
        yield mode, repeats, in_turns(runs, rounds, seconds)


def cost_of(compiled: jax.stages.Compiled, parameters: int) -> Cost:
    """The cost of a compiled step per parameter."""
    # A count of zero is left out; without any analysis nothing is known.
    analysis = compiled.cost_analysis() or {}
    missing = 0.0 if analysis else math.nan
    memory = compiled.memory_analysis()
    program = compiled.as_text() or ""
    whole = list(_INSTRUCTION.finditer(program))
    entry = _INSTRUCTION.finditer(program[program.index("ENTRY") :])
    passes = [
        found["opcode"]
        for found in entry
        if found["opcode"] in _KERNELS and _elements(found["shape"])
    ]
    roots = sum(_elements(x["shape"]) for x in whole if x["opcode"] in ("sqrt", "rsqrt"))
    return Cost(
        flops=analysis.get("flops", missing) / parameters,
        transcendentals=analysis.get("transcendentals", missing) / parameters,
        roots=roots / parameters,
        bytes_accessed=analysis.get("bytes accessed", missing) / parameters,
        temporary_bytes=(memory.temp_size_in_bytes if memory else math.nan) / parameters,
        kernels=len(passes),
        copies=passes.count("copy"),
    )


def roots_are_transcendental() -> bool:
    """Whether this backend's cost analysis counts a square root as transcendental."""
    compiled = jax.jit(jax.numpy.sqrt).lower(np.ones(8, np.float32)).compile()
    return (compiled.cost_analysis() or {}).get("transcendentals", 0) > 0


def record_path(out: pathlib.Path, size: str, name: str) -> pathlib.Path:
    """Where the record of an optimizer at a size is kept."""
    slug = re.sub(r"[^a-z0-9.]+", "-", size.lower())
    return out / "runs" / f"{slug}-{name}.json"


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, real or abstract."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def median(values: Sequence[float]) -> float:
    """Of the rounds of one contender."""
    return statistics.median(values)


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of the rounds of each contender."""
    return {side: median(values) for side, values in times.items()}


def draw(axis: "Axes", points: Sequence[Spread], offset: float, label: str) -> None:
    """Draws a row of medians with their quartiles, one below the other."""
    whiskers = [[x.median - x.low for x in points], [x.high - x.median for x in points]]
    axis.errorbar(
        [x.median for x in points],
        [at + offset for at in range(len(points))],
        xerr=whiskers,
        fmt="o",
        ms=3.5,
        lw=1,
        label=label,
    )


def finish(figure: "Figure", axes: np.ndarray, names: Sequence[str], title: str) -> None:
    """Names the rows of panels of ratios, marks the ratio of 1, and adds legend and title."""
    for axis in axes.flat:
        axis.set_xlim(left=0)
        axis.axvline(1, color="black", lw=0.8)
        axis.grid(alpha=0.25)
        axis.set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()  # shared, so it turns all
    axes[0][-1].legend(title="parameters", bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.suptitle(title)
    figure.tight_layout()


def _elements(shape: str) -> int:
    """Entries of all arrays of a shape of the HLO text; scalars do not count."""
    return sum(
        math.prod(map(int, sizes.split(","))) for sizes in re.findall(r"\[([\d,]+)\]", shape)
    )
