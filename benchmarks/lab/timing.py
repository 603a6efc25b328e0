"""Times programs in turns, and reads what the compiler says that they cost."""

import functools
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

FEWEST_ROUNDS = 3
SHORTEST = 0.02  # seconds: a shorter measurement is repeated, so that the clock is no part

MODES = {"call": "called from Python", "loop": "inside a compiled loop"}

FULL = "float32"
STATES: Mapping[str, Mapping[str, str]] = {  # how `narrow_state` keeps both moments
    "8bit": {"mu": "int8", "nu": "uint8"},
    "bfloat16": {"mu": "bfloat16", "nu": "bfloat16"},
    "float16": {"mu": "float16", "nu": "float16"},
}

_INSTRUCTION = re.compile(r"= (?P<shape>\([^)]*\)|\S+) (?P<opcode>[a-z][\w-]*)\(")
_KERNELS = ("fusion", "copy", "call", "custom-call")


class Cost(NamedTuple):
    """What one compiled step costs, per parameter."""

    flops: float
    transcendentals: float  # as XLA counts them; on a CPU roots, too
    roots: float  # sqrt and rsqrt in the optimized program
    bytes_accessed: float  # all passes over memory, temporary arrays included
    temporary_bytes: float  # arrays that live during the step only
    kernels: int  # passes over an array, copies included
    copies: int  # those of them that only copy


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
        loop, started = self.loop, time.perf_counter()
        self.carry = jax.block_until_ready(loop(self.carry, self.grads, repeats))
        return (time.perf_counter() - started) / repeats


def step_of(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """One step: (params, state), gradients and what `update` is told -> (params, state)."""
    update = optax.with_extra_args_support(optimizer).update

    def step(carry: tuple[Any, Any], grads: Any, **told: Any) -> tuple[Any, Any]:
        params, state = carry
        updates, state = update(grads, state, params, **told)
        return optax.apply_updates(params, updates), state

    return step


def runner_of(
    optimizer: optax.GradientTransformation, params: Any, grads: Any, **told: Any
) -> Runner:
    """Steps of an optimizer whose `update` is told more; the parameters are donated."""
    step = step_of(optimizer)
    carry = (params, jax.jit(optimizer.init)(params))
    return Runner(lambda carry, fed: step(carry, fed[0], **fed[1]), carry, (grads, told))


def repeats_of(measure: Callable[[int], float]) -> int:
    """How often to repeat a measurement for it to last; warms it up, too."""
    measure(1)
    repeats = 1
    while (estimate := measure(repeats)) * repeats < SHORTEST / 4 and repeats < 4096:
        repeats *= 4
    return max(1, math.ceil(SHORTEST / estimate))


def repeated(
    timers: Mapping[str, Callable[[int], float]], rounds: int, seconds: float, alike: bool
) -> dict[str, Any]:
    """Repeats, and seconds per step round by round, of steps that are timed in turns.

    With `alike` all repeat equally often; where some are many times slower than others, each
    often enough takes less time.
    """
    repeats = {side: repeats_of(timer) for side, timer in timers.items()}
    if alike:
        repeats = dict.fromkeys(repeats, max(repeats.values()))
    runs = {side: functools.partial(timer, repeats[side]) for side, timer in timers.items()}
    return {"repeats": repeats, "seconds": in_turns(runs, rounds, seconds)}


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


def tree_bytes(tree: Any) -> int:
    """The bytes of all arrays of a tree, real or abstract."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def median(values: Sequence[float]) -> float:
    """Of the rounds of one contender."""
    return statistics.median(values)


def _elements(shape: str) -> int:
    """Entries of all arrays of a shape of the HLO text; scalars do not count."""
    return sum(
        math.prod(map(int, sizes.split(","))) for sizes in re.findall(r"\[([\d,]+)\]", shape)
    )
