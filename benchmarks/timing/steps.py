"""One step of an optimizer beside optax's, and of DAO-E beside its experts'."""

import concurrent.futures
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

import optabs
from benchmarks.lab import tasks, timing, torch_peer
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.models import RESNETS, Network, resnet
from benchmarks.lab.records import Key
from benchmarks.lab.study import Unit, unit_of
from benchmarks.lab.timing import FULL, MODES, STATES
from benchmarks.steady import RULES
from optabs.ensemble import experts
from optabs.ensemble.state import Storage

Maker = Callable[[], optax.GradientTransformation]

RATE = 1e-3
COPY = "copy"  # of as many bytes as the optimizer has to move
TORCH = "torch.optim.AdamW, fused"
GRADIENTS = (FULL, "bfloat16")
DAO_E, ADAM = "dao_e", "optax.adam"
BASELINES = (f"{DAO_E}, uniform", f"{DAO_E}, paper")  # no bar was set for them
ALONE = " alone"
BATCH = 128
IMAGE = (32, 32, 3)  # what features are taken of where no network is trained


class Sized(NamedTuple):
    """A network whose parameters are a size, and one of the inputs that it is trained on."""

    network: Callable[[], Network]
    instance: tuple[int, ...]


NETWORKS = {
    "resnet18": Sized(
        lambda: resnet(RESNETS["resnet18"], channels=3, classes=10), (32, 32, 3)
    ),
    "mlp": Sized(lambda: tasks.mlp(784, 768, 512, 10), (784,)),  # 1e6 parameters
}

# Each optax optimizer with the arguments that make it the same rule; optax.nadam corrects its
# average one step ahead.
OPTAX: dict[str, Maker] = {
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
OURS: dict[str, Maker] = {
    **{
        name: functools.partial(getattr(optabs, name), RATE)
        for name in OPTAX
        if name != "amsgrad"
    },
    "adagrad": lambda: optabs.adagrad(RATE, eps=0.0, eps_root=1e-7),  # as optax has its eps
    "amsgrad": lambda: RULES["adam, max"](RATE),
    "adagrad_abs": lambda: optabs.adagrad_abs(RATE),
    "rmsprop_abs": lambda: optabs.rmsprop_abs(RATE),
    "adadelta_abs": lambda: optabs.adadelta_abs(RATE),
    "adam_abs": lambda: optabs.adam_abs(RATE),
    "adam_abs_steady": lambda: optabs.adam_abs(RATE, steady=True),
    "adamw_abs": lambda: optabs.adamw_abs(RATE),
    "nadam_abs": lambda: optabs.nadam_abs(RATE),
}


def makers_of(name: str, state: str = FULL) -> dict[str, Maker]:
    """An optimizer, then its rivals: optax's, its parent, and itself in float32."""
    parent = name.split("_abs")[0]
    rivals = {f"optax.{parent}": OPTAX[parent], f"optabs.{parent}": OURS[parent]}
    if state == FULL:
        return {f"optabs.{name}": OURS[name]} | rivals
    narrow = f"optabs.{name}, {state}"
    rivals |= {f"optabs.{name}": OURS[name]}
    return {narrow: lambda: optabs.narrow_state(OURS[name](), STATES[state])} | rivals


@functools.cache
def shapes_of(size: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of one array of so many numbers, or of a network's parameters."""
    if size not in NETWORKS:
        return ((int(float(size)),),)
    params, _ = jax.eval_shape(NETWORKS[size].network().init, jax.random.key(0))
    return tuple(leaf.shape for leaf in jax.tree.leaves(params))


def sizes_of(text: str) -> list[str]:
    """The sizes of a list such as '1e4,1.6e7,resnet18'."""
    sizes = [part.strip() for part in text.split(",")]
    try:
        numbers = [float(size) for size in sizes if size not in NETWORKS]
        if any(number < 1 or number != int(number) for number in numbers):
            raise ValueError
    except (OverflowError, ValueError):
        raise ArgumentError(
            f"sizes is {text!r}; pass whole numbers above 0 such as 1.6e7, or "
            f"{' or '.join(NETWORKS)}, separated by commas."
        ) from None
    return sizes


def measure(
    makers: Mapping[str, Maker],
    shapes: Sequence[tuple[int, ...]],
    rounds: int,
    seconds: float,
    *,
    gradients: str = FULL,
    told: Mapping[str, Any] | None = None,
    copy: bool = False,
    torch: str | None = None,
) -> dict[str, Any]:
    """Times one step of each optimizer in turns, on given gradients.

    Args:
      makers: the optimizers by name, ours first.
      shapes: of the parameters, float32.
      rounds: measurements of each.
      seconds: per mode; after these no new round begins.
      gradients: their dtype.
      told: what else `update` is told.
      copy: whether a plain copy of as many bytes as ours has to move is timed beside them,
        and all repeat their step equally often.
      torch: the device on which PyTorch's fused AdamW is a further rival; None: it is none.
        It has no compiled loop: both of its times are of calls.
    """
    parameters = sum(map(math.prod, shapes))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    dtype = jnp.dtype(gradients)
    grads = [jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True)]

    def prepared(make: Maker) -> timing.Runner:
        params = [jnp.zeros(shape) for shape in shapes]
        runner = timing.runner_of(make(), params, grads, **(told or {}))
        _ = runner.loop
        return runner

    # Compiling is most of the time where there are many leaves.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runners = dict(zip(makers, pool.map(prepared, makers.values()), strict=True))
    needed = {
        side: timing.tree_bytes(grads) + 2 * timing.tree_bytes(runner.carry)
        for side, runner in runners.items()
    }
    found = {
        "parameters": parameters,
        "leaves": len(shapes),
        "state_bytes": {
            side: timing.tree_bytes(runner.carry[1]) / parameters
            for side, runner in runners.items()
        },
        "must_move_bytes": {side: count / parameters for side, count in needed.items()},
        "cost": {
            side: timing.cost_of(runner.step, parameters)._asdict()
            for side, runner in runners.items()
        },
    }
    if copy:
        # It reads and writes each byte once, so its array is half of the traffic.
        copied = jnp.zeros(max(1, needed[next(iter(makers))] // 8))
        runners[COPY] = timing.Runner(lambda x, one: x + one, copied, jnp.ones([]))
        del copied  # a donated array that is still named is kept alive
    beside = {} if torch is None else {TORCH: torch_peer.adamw_step(shapes, RATE, torch)}
    for mode in MODES:
        timers = {
            side: runner.call if mode == "call" else runner.inside
            for side, runner in runners.items()
        }
        found[mode] = timing.repeated(timers | beside, rounds, seconds, copy)
    return found


def step_unit(
    size: str, name: str, state: str, rounds: int, seconds: float, **options: Any
) -> Unit:
    """One optimizer with its rivals at a size; the options are those of `measure`."""
    setting = state + (", bfloat16 gradients" if options["gradients"] != FULL else "")
    config = {
        "size": size, "optimizer": name, "state": state, "codes": STATES.get(state),
        "rounds": rounds, "seconds": seconds, **options,
    }  # fmt: skip

    def make(**_: Any) -> dict[str, Any]:
        makers = makers_of(name, state)
        return measure(makers, shapes_of(size), rounds, seconds, copy=True, **options)

    return unit_of(Key(size, name, setting, kind="step"), config, make)


def mixture_units(size: str, rounds: int, seconds: float) -> list[Unit]:
    """The steps of DAO-E at a size and, where that is a network, its training."""
    trained = NETWORKS.get(size)
    instance = trained.instance if trained else IMAGE
    config = {"size": size, "optimizer": DAO_E, "rounds": rounds, "seconds": seconds}
    config |= {"batch_size": BATCH, "instance": instance}

    def steps(**_: Any) -> dict[str, Any]:
        told = {"value": jnp.ones([]), "batch": batch_of(instance)}
        return measure(contenders(), shapes_of(size), rounds, seconds, told=told)

    units = [unit_of(Key(size, DAO_E, "step", kind=DAO_E), config, steps)]
    if trained:
        key = Key(size, DAO_E, "training", kind=DAO_E)
        units.append(unit_of(key, config, functools.partial(measure_training, trained)))
    return units


def variants() -> dict[str, Maker]:
    """DAO-E by default, with its other storages, and with other controllers."""
    default = inspect.signature(optabs.dao_e).parameters["previous"].default
    made: dict[str, Maker] = {DAO_E: optabs.dao_e}
    for storage in get_args(Storage):
        if storage != default:
            made[f"{DAO_E}, {storage}"] = functools.partial(optabs.dao_e, previous=storage)
    uniform, paper = optabs.Controller.uniform(), optabs.Controller.paper()
    made[BASELINES[0]] = functools.partial(optabs.dao_e, controller=uniform)
    made[BASELINES[1]] = functools.partial(
        optabs.dao_e, controller=paper, features=optabs.features.ALL
    )
    return made


def contenders() -> dict[str, Maker]:
    """The variants, Adam at the experts' rate, and each expert alone."""
    rate = experts.DEFAULT_RATE
    alone = {
        f"{name}{ALONE}": functools.partial(make, rate)
        for name, make in experts.DEFAULT.items()
    }
    return {**variants(), ADAM: lambda: optax.adam(rate), **alone}


def batch_of(instance: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """BATCH inputs with their labels."""
    inputs = jax.random.normal(jax.random.key(1), (BATCH, *instance))
    return inputs, jnp.arange(BATCH) % 10


def measure_training(trained: Sized, rounds: int, seconds: float, **_: Any) -> dict[str, Any]:
    """Times training steps with DAO-E and with Adam, and each optimizer's step apart."""
    net, batch = trained.network(), batch_of(trained.instance)
    params, statistics = jax.jit(net.init)(jax.random.key(0))
    grads, told = jax.tree.map(jnp.ones_like, params), {"value": jnp.ones([]), "batch": batch}
    timers: dict[str, Callable[[int], float]] = {}
    for side in (DAO_E, ADAM):
        optimizer = contenders()[side]()
        # Copies, since what a runner is given is donated.
        carry = jax.tree.map(jnp.copy, (params, statistics))
        carry = (*carry, jax.jit(optimizer.init)(params))
        # XLA's convolutions are slow inside loops on CPUs, so training is called. An
        # optimizer's step inside of it is not; nor is the one that it is compared with.
        step = training_step(net, optimizer)
        timers[f"training, {side}"] = timing.Runner(step, carry, batch).call
        copied = jax.tree.map(jnp.copy, params)
        timers[side] = timing.runner_of(optimizer, copied, grads, **told).inside
        del carry, copied
    return timing.repeated(timers, rounds, seconds, alike=False)


def training_step(
    net: Network, optimizer: optax.GradientTransformation
) -> Callable[[tuple[Any, Any, Any], Any], tuple[Any, Any, Any]]:
    """One step of training: (params, statistics, state), batch -> the same."""
    descend = timing.step_of(optimizer)

    def loss_fn(params: Any, statistics: Any, batch: Any) -> tuple[jax.Array, Any]:
        inputs, labels = batch
        logits, statistics = net.apply(params, statistics, inputs, True)
        return optabs.losses.softmax_cross_entropy(logits, labels).mean(), statistics

    def step(carry: tuple[Any, Any, Any], batch: Any) -> tuple[Any, Any, Any]:
        params, statistics, state = carry
        (loss, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, statistics, batch
        )
        params, state = descend((params, state), grads, value=loss, batch=batch)
        return params, statistics, state

    return step
