"""Times programs in turns, and reads what the compiler says that they cost."""

import functools
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

FEWEST_ROUNDS = 3
SHORTEST = 0.02  # seconds: a shorter measurement is repeated, so that the clock is no part

MODES = {"call": "called from Python", "loop": "inside a compiled loop"}

FULL = "float32"
STATES: Mapping[str, Mapping[str, str]] = {  # how `narrow_state` keeps both moments
    "8bit": {"mu": "int8", "nu": "uint8"},
    "bfloat16": {"mu": "bfloat16", "nu": "bfloat16"},
}

_INSTRUCTION = re.compile(r"= (\([^)]*\)|\S+) ([a-z][\w-]*)\(")  # shape and opcode
_KERNELS = ("fusion", "copy", "call", "custom-call")

median = statistics.median


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @property
    def percent(self) -> "Spread":
        """A hundred times as much."""
        return Spread(*(100 * part for part in self))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: a slow moment of the machine slows both."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def in_turns(
    contenders: Mapping[str, Callable[[], float]], rounds: int, seconds: float = math.inf
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


def timed(
    contenders: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What a first call of each gives, to warm it up, and the seconds of more in turns."""
    first = {name: jax.block_until_ready(run()) for name, run in contenders.items()}
    clocks = {name: functools.partial(seconds_of, run) for name, run in contenders.items()}
    return first, in_turns(clocks, rounds)


class Runner:
    """A step that is called from Python, or inside a compiled loop; the carry is donated."""

    def __init__(self, step: Callable[..., Any], carry: Any, grads: Any) -> None:
        def loop(carry: Any, grads: Any, count: int) -> Any:
            def body(_: Any, carry: Any) -> Any:
                # Without it, what depends on the gradient alone would leave the loop.
                return step(*jax.lax.optimization_barrier((carry, grads)))

            return jax.lax.fori_loop(0, count, body, carry)

        self.carry, self.grads = carry, grads
        self.compiled = jax.jit(step, donate_argnums=0).lower(carry, grads).compile()
        self._loop = jax.jit(loop, donate_argnums=0)

    def call(self, repeats: int) -> float:
        """Seconds per step, called from Python one after the other."""
        started = time.perf_counter()
        for _ in range(repeats):
            self.carry = self.compiled(self.carry, self.grads)
        jax.block_until_ready(self.carry)
        return (time.perf_counter() - started) / repeats

    def loop(self, repeats: int) -> float:
        """Seconds per step inside one compiled loop, which the first call compiles."""
        started = time.perf_counter()
        self.carry = jax.block_until_ready(self._loop(self.carry, self.grads, repeats))
        return (time.perf_counter() - started) / repeats


def step_of(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """One step: (params, state), gradients and what else `update` takes -> (params, state)."""
    update = optax.with_extra_args_support(optimizer).update

    def step(carry: tuple[Any, Any], grads: Any, **extra: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def runner_of(
    optimizer: optax.GradientTransformation, params: Any, grads: Any, **extra: Any
) -> Runner:
    """Steps of an optimizer whose `update` takes more; the parameters are donated."""
    step = step_of(optimizer)
    carry = (params, jax.jit(optimizer.init)(params))
    return Runner(lambda carry, fed: step(carry, fed[0], **fed[1]), carry, (grads, extra))


def repeated(
    timers: Mapping[str, Callable[[int], float]], rounds: int, seconds: float
) -> dict[str, Any]:
    """Repeats, and seconds per step round by round, of steps that are timed in turns."""
    repeats = {side: repeats_of(timer) for side, timer in timers.items()}
    runs = {side: functools.partial(timer, repeats[side]) for side, timer in timers.items()}
    return {"repeats": repeats, "seconds": in_turns(runs, rounds, seconds)}


def repeats_of(timer: Callable[[int], float]) -> int:
    """How often to repeat a measurement for it to last; warms it up, too."""
    timer(1)
    repeats = 1
    while (estimate := timer(repeats)) * repeats < SHORTEST / 4 and repeats < 4096:
        repeats *= 4
    return max(1, math.ceil(SHORTEST / estimate))


def cost_of(compiled: jax.stages.Compiled, parameters: int) -> dict[str, float]:
    """What a compiled step costs.

    Returns:
      Per parameter, what XLA counts: flops, transcendentals (on a CPU roots, too),
      bytes_accessed by all passes over memory and temporary_bytes, which live during the step
      only; and roots, each sqrt and rsqrt of the optimized program. Of the whole step:
      kernels, the passes over an array, and copies, those of them that only copy.
    """
    counts, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert counts is not None
    assert memory is not None
    text = compiled.as_text() or ""
    whole, entry = (_INSTRUCTION.findall(each) for each in (text, text[text.index("ENTRY") :]))
    passes = [code for shape, code in entry if code in _KERNELS and _entries(shape)]
    return {
        "flops": counts.get("flops", 0) / parameters,  # a count of zero is left out
        "transcendentals": counts.get("transcendentals", 0) / parameters,
        "roots": sum(_entries(shape) for shape, code in whole if "sqrt" in code) / parameters,
        "bytes_accessed": counts.get("bytes accessed", 0) / parameters,
        "temporary_bytes": memory.temp_size_in_bytes / parameters,
        "kernels": len(passes),
        "copies": passes.count("copy"),
    }


def _entries(shape: str) -> int:
    """Of all arrays of a shape of the HLO text; scalars do not count."""
    return sum(
        math.prod(map(int, sizes.split(","))) for sizes in re.findall(r"\[([\d,]+)\]", shape)
    )


def tree_bytes(tree: Any) -> int:
    """The bytes of all arrays of a tree, real or abstract."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def tree_size(tree: Any) -> int:
    """The numbers in all arrays of a tree, real or abstract."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
