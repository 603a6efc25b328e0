"""One step of an optimizer beside optax's, of DAO-E beside its experts', and compiling it."""

import functools
import importlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import util
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

import optabs
from benchmarks.lab import tasks, timing
from benchmarks.lab.models import RESNETS, Network, resnet
from benchmarks.lab.records import Key
from benchmarks.lab.study import Unit
from benchmarks.lab.tasks import Split
from benchmarks.lab.timing import FULL, MODES, STATES
from benchmarks.lab.training import training_step
from benchmarks.steady import RULES
from benchmarks.timing import pytorch
from optabs.mixture import experts
from optabs.mixture.state import Storage

Maker = Callable[[], optax.GradientTransformation]

RATE = 1e-3
SECONDS = 20.0  # per comparison and mode; after these, only the fewest rounds are completed
COPY = "copy"  # of as many bytes as the optimizer has to move
DAO_E, ADAM = "dao_e", "optax.adam"
STEERED = "steered, adam"
EQUAL = f"{DAO_E}, rate=None"
BASELINES = (f"{DAO_E}, uniform", f"{DAO_E}, paper", EQUAL, STEERED)  # without a bar
TRAINED = (DAO_E, EQUAL, STEERED, ADAM)  # also inside the training of networks
ALONE = " alone"
BATCH = 128
IMAGE = (32, 32, 3)  # what features are taken of where no network is trained

# Networks whose parameters are a size, and the shape of an input that they are trained on.
NETWORKS: Mapping[str, tuple[Callable[[], Network], tuple[int, ...]]] = {
    "resnet18": (lambda: resnet(RESNETS["resnet18"], channels=3, classes=10), IMAGE),
    "mlp": (lambda: tasks.mlp(784, 768, 512, 10), (784,)),  # 1e6 parameters
}
LARGEST = "1e9"  # only where it is asked for: it takes 60 GB
SIZES = {  # parameters of a single matrix, or a network's
    "step": ("1e4", "1e5", "1e6", "1.6e7", "1e8", LARGEST, "resnet18"),
    "dao_e": ("1e6", "1.6e7", "mlp", "resnet18"),
}

# Each optax optimizer with the arguments that make it the same rule; optax.nadam corrects its
# average one step ahead.
OPTAX: Mapping[str, Maker] = {
    "sgd": lambda: optax.sgd(RATE),
    "momentum": lambda: optax.sgd(0.1 * RATE, momentum=0.9),
    "nag": lambda: optax.sgd(0.1 * RATE, momentum=0.9, nesterov=True),
    "adagrad": lambda: optax.adagrad(RATE, initial_accumulator_value=0.0),
    "rmsprop": lambda: optax.rmsprop(RATE, eps_in_sqrt=False),
    "adadelta": lambda: optax.adadelta(RATE),
    "adam": lambda: optax.adam(RATE),
    "adamw": lambda: optax.adamw(RATE),
    "nadam": lambda: optax.nadam(RATE),
    "amsgrad": lambda: optax.amsgrad(RATE),
}
_BY_HAND: Mapping[str, Maker] = {
    "adagrad": lambda: optabs.adagrad(RATE, eps=0.0, eps_root=1e-7),  # as optax has its eps
    "amsgrad": lambda: RULES["adam, max"](RATE),
    "adam_abs_steady": lambda: optabs.adam_abs(RATE, steady=True),
}
OURS: Mapping[str, Maker] = {
    name: _BY_HAND.get(name) or functools.partial(getattr(optabs, name), RATE)
    for name in (
        *OPTAX, "adagrad_abs", "rmsprop_abs", "adadelta_abs", "adam_abs", "adam_abs_steady",
        "adamw_abs", "nadam_abs",
    )
}  # fmt: skip


def adamw8(rate: Any = RATE, **settings: Any) -> optax.GradientTransformation:
    """The other 8-bit Adam with optax's interface; raises ImportError where it is missing."""
    made: optax.GradientTransformation = importlib.import_module("rollfast").adamw8(
        rate, **settings
    )
    return made


ADAMW8, EIGHT_BITS = "rollfast.adamw8", "8bit"
TORCH = ("adamw", "adamw_abs")  # beside PyTorch's, where that is installed
LEAVES = (8, 16, 40, 62, 150)
COMPILED: Mapping[str, Maker] = {
    ADAM: OPTAX["adam"],
    "adam_abs": OURS["adam_abs"],
    "narrow_state": lambda: optabs.narrow_state(optax.adam(RATE), min_size=16),
    "dao_e": lambda: optabs.dao_e(RATE),
    "dao_e_uniform": lambda: optabs.dao_e(RATE, controller=optabs.Controller.uniform()),
    "dao_e_one_expert": lambda: optabs.dao_e(experts={"adam": optabs.adam(RATE)}),
}


def unit_of(key: Key, measure: Callable[..., Mapping[str, Any]], **config: Any) -> Unit:
    """One record, which one call makes; what is asked for are its keyword arguments."""
    return Unit((key,), config, lambda missing, done: [(key, measure(**config))])


def step_units(
    sizes: Sequence[str], names: Sequence[str], state: str, rounds: int
) -> Iterator[Unit]:
    """Each optimizer with its rivals at each size; of DAO-E a network's training, too."""
    for size, name in itertools.product(sizes, names):
        asked = {"size": size, "optimizer": name, "rounds": rounds, "seconds": SECONDS}
        if size not in NETWORKS:
            asked["shape"] = shapes_of(size)[0]
        if name != DAO_E:
            asked |= {"state": state, "codes": STATES.get(state)}
            if name in TORCH and pytorch.available():
                asked["torch"] = pytorch.ADAMW
            if name == "adamw" and state == EIGHT_BITS and util.find_spec("rollfast"):
                asked["peer"] = ADAMW8
            yield unit_of(Key(size, name, state, "step"), measure_step, **asked)
            continue
        key, asked["batch_size"] = Key(size, name, "step", DAO_E), BATCH
        yield unit_of(key, measure_step, **asked)
        if size in NETWORKS:
            key = key._replace(setting="training")
            yield unit_of(key, measure_training, **asked)


def makers_of(name: str, state: str = FULL, peer: str = "") -> dict[str, Maker]:
    """An optimizer, then its rivals: optax's, its parent, itself in float32, and a peer."""
    if name == DAO_E:
        return contenders()
    parent, own = name.split("_abs")[0], {f"optabs.{name}": OURS[name]}
    rivals = {f"optax.{parent}": OPTAX[parent], f"optabs.{parent}": OURS[parent]}
    if state == FULL:
        return own | rivals
    narrow = {
        f"optabs.{name}, {state}": lambda: optabs.narrow_state(OURS[name](), STATES[state])
    }
    return narrow | rivals | own | ({peer: adamw8} if peer else {})


def contenders() -> dict[str, Maker]:
    """DAO-E with each storage, other controllers, Adam at the experts' rate, steered and not,
    each expert."""
    made: dict[str, Maker] = {DAO_E: optabs.dao_e}
    for storage in get_args(Storage)[1:]:  # the first is the default
        made[f"{DAO_E}, {storage}"] = functools.partial(optabs.dao_e, previous=storage)
    uniform, paper = optabs.Controller.uniform(), optabs.Controller.paper()
    features = optabs.features.ALL
    made[BASELINES[0]] = lambda: optabs.dao_e(controller=uniform)
    made[BASELINES[1]] = lambda: optabs.dao_e(controller=paper, features=features)
    made[EQUAL] = lambda: optabs.dao_e(controller=optabs.Controller(rate=None))
    made[STEERED] = lambda: optabs.steered(optax.adam(experts.DEFAULT_RATE))
    made[ADAM] = lambda: optax.adam(experts.DEFAULT_RATE)
    for name, make in experts.DEFAULT.items():
        made[name + ALONE] = functools.partial(make, experts.DEFAULT_RATE)
    return made


@functools.cache
def shapes_of(size: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of a network's parameters, or of so many in a matrix, as square as can be."""
    if size not in NETWORKS:
        count = int(float(size))
        rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
        return ((rows, count // rows),)
    params, _ = jax.eval_shape(NETWORKS[size][0]().init, jax.random.key(0))
    return tuple(leaf.shape for leaf in jax.tree.leaves(params))


def extra_of(size: str) -> dict[str, Any]:
    """What DAO-E takes, too: a loss, and BATCH inputs of a network with their labels."""
    instance = NETWORKS[size][1] if size in NETWORKS else IMAGE
    inputs = jax.random.normal(jax.random.key(1), (BATCH, *instance))
    return {"value": jnp.ones([]), "batch": Split(inputs, jnp.arange(BATCH) % 10)}


def measure_step(
    size: str,
    optimizer: str,
    rounds: int,
    state: str = FULL,
    torch: str = "",
    peer: str = "",
    **_: Any,
) -> dict[str, Any]:
    """Times one step of an optimizer and of its rivals in turns, on given gradients.

    A copy of as many bytes as the first has to move is timed beside them and, where asked,
    PyTorch's, which has no compiled loop.
    """
    shapes = shapes_of(size)
    parameters = sum(map(math.prod, shapes))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    grads = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    extra = extra_of(size) if optimizer == DAO_E else {}
    found: dict[str, Any] = {"parameters": parameters, "leaves": len(shapes)}
    needed, cost = found["must_move_bytes"], found["cost"] = {}, {}
    runners = {}
    for side, make in makers_of(optimizer, state, peer).items():
        runners[side] = timing.runner_of(make(), [*map(jnp.zeros, shapes)], grads, **extra)
        moved = timing.tree_bytes(grads) + 2 * timing.tree_bytes(runners[side].carry)
        needed[side] = moved / parameters
        cost[side] = timing.cost_of(runners[side].compiled, parameters)
    # It reads and writes each byte once, so its array is half of the traffic.
    half = round(parameters * next(iter(needed.values()))) // 8
    runners[COPY] = timing.Runner(lambda x, one: x + one, jnp.zeros(half), jnp.ones([]))
    theirs: dict[str, Any] = {}
    if torch:
        theirs[torch] = pytorch.AdamW(shapes, RATE)
        needed[torch] = pytorch.MOVED
    for mode in MODES:
        timers = {
            side: getattr(runner, mode)
            for side, runner in (runners | theirs).items()
            if hasattr(runner, mode)
        }
        found[mode] = timing.repeated(timers, rounds, SECONDS)
    return found


def measure_training(size: str, rounds: int, **_: Any) -> dict[str, Any]:
    """Training steps with DAO-E, with Adam and with it steered, and each's step apart."""
    net, extra = NETWORKS[size][0](), extra_of(size)
    batch = extra["batch"]
    loss_fn = tasks.classification("", net, (batch,) * 3, steps=1, batch_size=1).loss_fn
    init = jax.jit(net.init)

    def timers_of(side: str) -> dict[str, Callable[[int], float]]:
        optimizer = contenders()[side]()
        step = training_step(loss_fn, optimizer)
        # Twice, since what a runner is given is donated.
        (params, statistics), (own, _) = (init(jax.random.key(0)) for _ in range(2))
        carry = params, statistics, jax.jit(optimizer.init)(params)
        # XLA's convolutions are slow inside loops on CPUs, so training is called. An
        # optimizer's step inside of it is not; nor is the one that it is compared with.
        training = timing.Runner(lambda carry, batch: step(carry, batch)[0], carry, batch)
        apart = timing.runner_of(optimizer, own, jax.tree.map(jnp.ones_like, own), **extra)
        return {f"training, {side}": training.call, side: apart.loop}

    timers = {name: run for side in TRAINED for name, run in timers_of(side).items()}
    return timing.repeated(timers, rounds, SECONDS)


def compile_units(rounds: int) -> Iterator[Unit]:
    """A step of some optimizers on so many small arrays."""
    for count in LEAVES:
        asked = {"leaves": count, "optimizers": list(COMPILED), "rounds": rounds}
        key = Key(f"{count} arrays", "all", "", "compile")
        yield unit_of(key, measure_compilation, **asked)


def measure_compilation(leaves: int, optimizers: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of fresh compilations in turns, in one process, and lines of the programs.

    A step is one on vectors of 16 and matrices of 16 x 16 numbers in turns.
    """
    shapes = [(16, 16) if index % 2 else (16,) for index in range(leaves)]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lines: dict[str, int] = {}

    def compiled(name: str) -> float:
        jax.clear_caches()
        optimizer = COMPILED[name]()
        carry = params, jax.eval_shape(optimizer.init, params)
        lowered = jax.jit(timing.step_of(optimizer)).lower(carry, params)
        started = time.perf_counter()
        program = lowered.compile()
        seconds = time.perf_counter() - started
        lines[name] = (program.as_text() or "").count("\n")
        return seconds

    clocks = {name: functools.partial(compiled, name) for name in optimizers}
    return {"seconds": timing.in_turns(clocks, rounds), "lines": lines}
