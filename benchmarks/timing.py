"""Times programs in turns, and reads what the compiler says that they cost."""

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.arguments import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST_ROUNDS = 3
SHORTEST = 0.02  # seconds: a shorter measurement is repeated, so that the clock is no part

RESNET = "resnet18"

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


def step_of(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """One step: (params, state), gradients -> (params, state)."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: tuple[Any, Any], grads: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Runner:
    """A step compiled twice: to be called from Python, and inside a compiled loop."""

    def __init__(self, step: Callable[..., Any], carry: Any, grads: Any) -> None:
        def loop(carry: Any, grads: Any, count: int) -> Any:
            def body(_: Any, carry: Any) -> Any:
                # Without it, what depends on the gradient alone would leave the loop.
                carry, fresh = jax.lax.optimization_barrier((carry, grads))
                return step(carry, fresh)

            return jax.lax.fori_loop(0, count, body, carry)

        self.carry, self.grads = carry, grads
        self.step = jax.jit(step, donate_argnums=0).lower(carry, grads).compile()
        self.loop = jax.jit(loop, donate_argnums=0).lower(carry, grads, 1).compile()

    def call(self, repeats: int) -> float:
        """Seconds per step, called from Python one after the other."""
        started = time.perf_counter()
        for _ in range(repeats):
            self.carry = self.step(self.carry, self.grads)
        jax.block_until_ready(self.carry)
        return (time.perf_counter() - started) / repeats

    def inside(self, repeats: int) -> float:
        """Seconds per step inside one compiled loop."""
        started = time.perf_counter()
        self.carry = jax.block_until_ready(self.loop(self.carry, self.grads, repeats))
        return (time.perf_counter() - started) / repeats


def repeats_of(measure: Callable[[int], float]) -> int:
    """How often to repeat a measurement for it to last; warms it up, too."""
    measure(1)
    repeats = 1
    while (estimate := measure(repeats)) * repeats < SHORTEST / 4 and repeats < 4096:
        repeats *= 4
    return max(1, math.ceil(SHORTEST / estimate))


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


def resnet18_shapes(classes: int = 10) -> list[tuple[int, ...]]:
    """Shapes of the 62 parameter arrays of a ResNet-18 for 32 x 32 images."""
    shapes: list[tuple[int, ...]] = [(3, 3, 3, 64), (64,), (64,)]
    width_in = 64
    for width in (64, 128, 256, 512):
        for inputs in (width_in, width):
            for fan_in in (inputs, width):
                shapes += [(3, 3, fan_in, width), (width,), (width,)]
            if inputs != width:
                shapes += [(1, 1, inputs, width), (width,), (width,)]
        width_in = width
    return [*shapes, (512, classes), (classes,)]


def shapes_of(text: str) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of each size of a list such as '1e4,1.6e7,resnet18'."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for part in map(str.strip, text.split(",")):
        try:
            number = math.nan if part == RESNET else float(part)
            if part != RESNET and (number < 1 or number != int(number)):
                raise ValueError(part)
        except (OverflowError, ValueError):
            raise ArgumentError(
                f"sizes is {text!r}; pass whole numbers above 0 such as 1.6e7, or {RESNET}, "
                "separated by commas."
            ) from None
        shapes[part] = resnet18_shapes() if part == RESNET else [(int(number),)]
    return shapes


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, real or abstract."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def median(values: Sequence[float]) -> float:
    """Of the rounds of one contender."""
    return statistics.median(values)


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


def _elements(shape: str) -> int:
    """Entries of all arrays of a shape of the HLO text; scalars do not count."""
    return sum(
        math.prod(map(int, sizes.split(","))) for sizes in re.findall(r"\[([\d,]+)\]", shape)
    )
