"""The time and memory of a DAO-E step, beside Adam's and beside those of its experts."""

import concurrent.futures
import functools
import inspect
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from rich.progress import track

import optabs
from benchmarks import arrays, mixture_report, store
from benchmarks.dao_e.arms import FORMS
from benchmarks.dao_e.resnet import MODELS, resnet
from benchmarks.lab import timing
from benchmarks.lab.models import MLP
from benchmarks.lab.networks import Network, network
from benchmarks.mixture_report import ADAM, BASELINES, DAO_E
from optabs.ensemble import experts
from optabs.ensemble.state import Storage

SIZES = f"1e6,1.6e7,{arrays.MLP},{arrays.RESNET}"
BATCH = 128
IMAGE = (32, 32, 3)

Maker = Callable[[], optax.GradientTransformation]


class Feed(NamedTuple):
    """What a step is given."""

    grads: Any
    value: jax.Array
    batch: Any


class Training(NamedTuple):
    """A network, and the inputs that it is trained on."""

    network: Callable[[], Network]
    instance: tuple[int, ...]


def _mlp() -> Network:
    return network(lambda rngs: MLP(arrays.MLP_WIDTHS, rngs=rngs))


def _resnet18() -> Network:
    return resnet(MODELS[arrays.RESNET], channels=IMAGE[-1], classes=10)


TRAININGS = {
    arrays.MLP: Training(_mlp, arrays.MLP_WIDTHS[:1]),
    arrays.RESNET: Training(_resnet18, IMAGE),
}


def variants() -> dict[str, Maker]:
    """DAO-E by default, with its other storages, and with other controllers."""
    default = inspect.signature(optabs.dao_e).parameters["previous"].default
    others = [storage for storage in get_args(Storage) if storage != default]
    made: dict[str, Maker] = {DAO_E: optabs.dao_e}
    for storage in others:
        made[f"{DAO_E}, {storage}"] = functools.partial(optabs.dao_e, previous=storage)
    for name, form in zip(BASELINES, ("uniform", "dao_e_paper"), strict=True):
        made[name] = functools.partial(optabs.dao_e, **FORMS[form]._asdict())
    return made


def adam() -> optax.GradientTransformation:
    """What is compared with, at the experts' rate."""
    return optax.adam(experts.DEFAULT_RATE)


def measure(
    shapes: list[tuple[int, ...]], instance: tuple[int, ...], rounds: int, seconds: float
) -> dict[str, Any]:
    """Times the variants of DAO-E, Adam and each expert alone in turns, gradients given.

    Args:
      shapes: of the parameters.
      instance: the shape of one of the batch's BATCH inputs, which features are taken of.
      rounds: measurements of each contender.
      seconds: per mode of timing; after these, only the fewest rounds are completed.
    """
    kinds = variants()
    alone = dict(_experts())
    makers: dict[str, Maker] = {**kinds, ADAM: adam, **alone}
    parameters = sum(map(math.prod, shapes))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    grads = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    feed = Feed(grads, jnp.ones([]), _batch(instance))

    def prepared(make: Maker) -> timing.Runner:
        params = [jnp.zeros(shape) for shape in shapes]
        runner = _runner(make(), params, feed)
        _ = runner.loop
        return runner

    # Compiling is most of the time where there are many leaves.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runners = dict(zip(makers, pool.map(prepared, makers.values()), strict=True))
    results: dict[str, Any] = {
        "parameters": parameters,
        "leaves": len(shapes),
        "state_bytes": {
            side: timing.tree_bytes(runner.carry[1]) / parameters
            for side, runner in runners.items()
        },
        "must_move_bytes": {
            side: (timing.tree_bytes(grads) + 2 * timing.tree_bytes(runner.carry)) / parameters
            for side, runner in runners.items()
        },
        "cost": {
            side: timing.cost_of(runner.step, parameters)._asdict()
            for side, runner in runners.items()
        },
    }
    for mode, repeats, times in timing.in_modes(runners, rounds, seconds, alike=False):
        together = [sum(parts) for parts in zip(*(times[name] for name in alone), strict=True)]
        results[mode] = {
            "repeats": repeats,
            "seconds": times,
            "median_seconds": timing.medians(times),
            "over_adam": {
                side: timing.ratio(times[side], times[ADAM])._asdict() for side in kinds
            },
            "over_experts": {
                side: timing.ratio(times[side], together)._asdict() for side in kinds
            },
        }
    return results


def measure_training(training: Training, rounds: int, seconds: float) -> dict[str, Any]:
    """Times training steps with DAO-E and with Adam, and each optimizer's step apart.

    Returns:
      seconds: of training steps and of the optimizers' steps. share: of the optimizer's step
      in a training step. over_adam: a training step with DAO-E over one with Adam.
    """
    net = training.network()
    batch = _batch(training.instance)
    params, statistics = jax.jit(net.init)(jax.random.key(0))
    feed = Feed(jax.tree.map(jnp.ones_like, params), jnp.ones([]), batch)
    sides = {DAO_E: variants()[DAO_E](), ADAM: adam()}
    timers: dict[str, Callable[[int], float]] = {}
    for side, optimizer in sides.items():
        # Copies, since what a runner is given is donated.
        carry = jax.tree.map(jnp.copy, (params, statistics))
        state = jax.jit(optimizer.init)(params)
        # XLA's convolutions are slow inside loops on CPUs, so training is called. An
        # optimizer's step inside of it is not; nor is the one that it is compared with.
        step = training_step(net, optimizer)
        timers[f"training, {side}"] = timing.Runner(step, (*carry, state), batch).call
        timers[side] = _runner(optimizer, jax.tree.map(jnp.copy, params), feed).inside
        del carry, state
    runs = {
        side: functools.partial(timer, timing.repeats_of(timer))
        for side, timer in timers.items()
    }
    times = timing.in_turns(runs, rounds, seconds)
    whole = {side: times[f"training, {side}"] for side in sides}
    return {
        "seconds": times,
        "median_seconds": timing.medians(times),
        "share": {side: timing.ratio(times[side], whole[side])._asdict() for side in sides},
        "over_adam": timing.ratio(whole[DAO_E], whole[ADAM])._asdict(),
    }


def training_step(
    net: Network, optimizer: optax.GradientTransformation
) -> Callable[[tuple[Any, Any, Any], Any], tuple[Any, Any, Any]]:
    """One step of training: (params, statistics, state), batch -> the same."""
    descend = timing.step_of(optimizer)

    def loss_fn(params: Any, statistics: Any, batch: Any) -> tuple[jax.Array, Any]:
        inputs, labels = batch
        logits, statistics = net.apply(params, statistics, inputs, training=True)
        return optabs.losses.softmax_cross_entropy(logits, labels).mean(), statistics

    def step(carry: tuple[Any, Any, Any], batch: Any) -> tuple[Any, Any, Any]:
        params, statistics, state = carry
        (loss, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, statistics, batch
        )
        params, state = descend((params, state), grads, value=loss, batch=batch)
        return params, statistics, state

    return step


def time_mixture(
    shapes: Mapping[str, list[tuple[int, ...]]],
    rounds: int,
    seconds: float,
    out: pathlib.Path,
) -> None:
    """Measures at each size, and writes the records, the tables and the figure."""
    environment = store.environment()
    results = {}
    for size in track(shapes, description=DAO_E):
        training = TRAININGS.get(size)
        instance = training.instance if training else IMAGE
        found = measure(shapes[size], instance, rounds, seconds)
        jax.clear_caches()
        if training:
            found["training"] = measure_training(training, rounds, seconds)
            jax.clear_caches()
        results[size] = found
        config = {"size": size, "optimizer": DAO_E, "rounds": rounds, "seconds": seconds}
        record = {
            "config": config | {"batch_size": BATCH, "instance": instance},
            "results": found,
            "environment": environment,
        }
        store.write_json(timing.record_path(out, size, DAO_E), record)
    mixture_report.report_mixture(results, out)


def _experts() -> dict[str, Maker]:
    return {
        f"{name} alone": functools.partial(make, experts.DEFAULT_RATE)
        for name, make in experts.DEFAULT.items()
    }


def _runner(optimizer: optax.GradientTransformation, params: Any, feed: Feed) -> timing.Runner:
    step = timing.step_of(optimizer)

    def fed(carry: tuple[Any, Any], feed: Feed) -> tuple[Any, Any]:
        return step(carry, feed.grads, value=feed.value, batch=feed.batch)

    return timing.Runner(fed, (params, jax.jit(optimizer.init)(params)), feed)


def _batch(instance: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    inputs = jax.random.normal(jax.random.key(1), (BATCH, *instance))
    return inputs, jnp.arange(BATCH) % 10
