"""Whole programs: compilations, epochs beside PyTorch's and a scan's, and populations."""

import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optabs
from benchmarks.lab import tasks, timing, torch_peer
from benchmarks.lab.records import Key
from benchmarks.lab.study import Unit, unit_of
from benchmarks.lab.tasks import Split, Splits
from benchmarks.lab.training import Optimizer
from optabs.training.batches import take

Function = Callable[..., Any]

RATE = 1e-3
ADAM = optabs.adam(RATE)
# A unit of Adam's state that learns nothing: what is left of `evolve` is evolution.
RESTING = Optimizer(ADAM.init, lambda grads, state, params=None: (grads, state))
RIVAL, JAX, FIT, HAND = "optax.adam", "jax, optabs.adam", "optabs.fit", "by hand"
COMPILED: Mapping[str, Callable[[], Optimizer]] = {
    RIVAL: lambda: optax.adam(RATE),
    "adam_abs": lambda: optabs.adam_abs(RATE),
    "narrow_state": lambda: optabs.narrow_state(optax.adam(RATE), min_size=16),
    "dao_e": lambda: optabs.dao_e(RATE),
    "dao_e_uniform": lambda: optabs.dao_e(RATE, controller=optabs.Controller.uniform()),
    "dao_e_one_expert": lambda: optabs.dao_e(experts={"adam": optabs.adam(RATE)}),
}
LEAVES = (8, 16, 40, 62, 150)
HIDDEN = {"logistic": (), "mlp-256-128": (256, 128)}
VMAP, CHUNKS = "under vmap", "in chunks"
SINGLY, FITS = "one by one", "optabs.fit one by one"
LEARNING = (VMAP, CHUNKS, SINGLY, FITS)
RATIOS = ((VMAP, SINGLY), (CHUNKS, SINGLY), (VMAP, FITS), (CHUNKS, FITS))
EVOLVE, ITSELF = "evolve", "evolve without training"
SHARE = 0.05  # of a generation, that an evolution without its training should take at most


def compile_units(rounds: int, quick: bool) -> list[Unit]:
    """A step of some optimizers on so many small arrays."""
    names = list(COMPILED)[: 2 if quick else None]
    return [
        unit_of(
            Key(f"{leaves} arrays", "all", kind="compile"),
            {"leaves": leaves, "optimizers": names, "rounds": rounds},
            measure_compilation,
        )
        for leaves in ([2] if quick else LEAVES)
    ]


def measure_compilation(leaves: int, optimizers: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of fresh compilations in turns, in one process, and lines of the programs."""
    lines: dict[str, int] = {}

    def compiled(name: str) -> float:
        jax.clear_caches()
        lowered = lowered_step(COMPILED[name](), leaves)
        programs: list[jax.stages.Compiled] = []
        seconds = timing.seconds_of(lambda: programs.append(lowered.compile()))
        lines[name] = (programs[0].as_text() or "").count("\n")
        return seconds

    clocks = {name: functools.partial(compiled, name) for name in optimizers}
    return {"seconds": timing.in_turns(clocks, rounds), "lines": lines}


def lowered_step(optimizer: Optimizer, leaves: int) -> jax.stages.Lowered:
    """A step on vectors of 16 and matrices of 16 x 16 numbers in turns, to be compiled."""
    params = {
        f"w{index}": jax.ShapeDtypeStruct((16, 16) if index % 2 else (16,), jnp.float32)
        for index in range(leaves)
    }
    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(timing.step_of(optimizer)).lower((params, state), params)


def learned(splits: Splits, *hidden: int) -> tuple[Function, Function, Function]:
    """Of a perceptron: key -> parameters, they and a batch -> loss, or accuracy."""
    net = tasks.mlp(splits[0].inputs[0].size, *hidden, 10)
    task = tasks.classification("", net, splits, steps=1, batch_size=1)
    return (
        lambda key: task.init(key)[0],
        lambda params, batch: task.loss_fn(params, {}, batch)[0],
        lambda params, split: task.evaluate(params, {}, split)[1],
    )


def epoch_of(loss_fn: Function, size: int | None, *, last: bool) -> Function:
    """Adam by hand: (params, state), an epoch's number, training set -> the same, mean loss.

    Without a size all are one batch; `last` trains on what fills no batch, too.
    """
    descend = timing.step_of(ADAM)

    def step(carry: Any, batch: Split) -> tuple[Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(carry[0], batch)
        return descend(carry, grads), loss

    def epoch(carry: Any, number: Any, train: Split) -> tuple[Any, jax.Array]:
        if size is None:
            return step(carry, train)
        key = jax.random.fold_in(jax.random.key(0), number)
        order = jax.random.permutation(key, len(train.labels))
        full = len(order) // size * size
        batches = order[:full].reshape(-1, size)
        carry, losses = jax.lax.scan(
            lambda at, rows: step(at, take(train, rows)), carry, batches
        )
        if last and full < len(order):
            carry, loss = step(carry, take(train, order[full:]))
            losses = jnp.append(losses, loss)
        return carry, losses.mean()

    return epoch


def epoch_units(data: pathlib.Path | None, rounds: int) -> list[Unit]:
    """Batches of three sizes; a missing PyTorch is said before the data are read."""
    device = torch_peer.device()
    splits = tasks.image_splits("mnist", data)
    config = {"dataset": "mnist", "model": "mlp-256-128", "learning_rate": RATE}
    config |= {"variants": list(torch_peer.VARIANTS), "rounds": rounds, "device": device}
    return [
        unit_of(
            Key("mnist", "adam", f"batch {size}", kind="epoch"),
            config | {"batch_size": size},
            functools.partial(measure_epochs, splits),
        )
        for size in (64, 128, 256)
    ]


def measure_epochs(
    splits: Splits, batch_size: int, variants: list[str], rounds: int, device: str, **_: Any
) -> dict[str, Any]:
    """All start from the same weights, shuffle anew and score the validation set."""
    train, validation, _test = splits
    init_fn, loss_fn, accuracy = learned(splits, *HIDDEN["mlp-256-128"])
    epoch = epoch_of(loss_fn, batch_size, last=False)

    @functools.partial(jax.jit, donate_argnums=0)
    def scored(carry: Any, number: Any, train: Split, validation: Split) -> Any:
        carry, loss = epoch(carry, number, train)
        return carry, number + 1, loss, accuracy(carry[0], validation)

    params = init_fn(jax.random.key(0))
    layers = [
        (np.asarray(layer["kernel"]), np.asarray(layer["bias"]))
        for _, layer in sorted(params["layers"].items())
    ]
    carry, number = (params, ADAM.init(params)), jnp.int32(0)

    def ours() -> tuple[float, float]:
        nonlocal carry, number
        carry, number, *shown = scored(carry, number, train, validation)
        loss, accuracy = jax.block_until_ready((carry, shown))[1]
        return float(loss), float(accuracy)

    flat = [
        (np.asarray(split.inputs).reshape(len(split.labels), -1), np.asarray(split.labels))
        for split in (train, validation)
    ]
    settings: dict[str, Any] = {"batch_size": batch_size, "learning_rate": RATE}
    theirs = {
        f"torch, {variant}": torch_peer.make_epoch(
            layers, *flat, variant=variant, device=device, **settings
        )
        for variant in variants
    }
    first, seconds = timing.timed({JAX: ours, **theirs}, rounds)
    # Alike if the contenders do the same work.
    names = ("loss", "validation_accuracy")
    shown = {side: dict(zip(names, each, strict=True)) for side, each in first.items()}
    return {"seconds": seconds, "first_epoch": shown}


def fit_units(rounds: int, quick: bool) -> list[Unit]:
    """Two models, batches of three sizes and all as one."""
    return [
        unit_of(
            Key(model, "adam", f"batch {size or 'all'}", kind="fit"),
            {"model": model, "batch_size": size, "epochs": epochs, "rounds": rounds},
            measure_fit,
        )
        for model in list(HIDDEN)[: 1 if quick else None]
        for size, epochs in (
            {400: 1} if quick else {16: 100, 64: 100, 256: 100, None: 1000}
        ).items()
    ]


def measure_fit(
    model: str, batch_size: int | None, epochs: int, rounds: int
) -> dict[str, Any]:
    """Seconds of training on digits through both, and how far their parameters are apart."""
    splits = tasks.image_splits("digits")
    init_fn, loss_fn, _ = learned(splits, *HIDDEN[model])
    epoch = jax.jit(epoch_of(loss_fn, batch_size, last=True), donate_argnums=0)
    params = init_fn(jax.random.key(0))
    settings: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs, "progress": False}

    def through_fit() -> Any:
        result = optabs.fit(loss_fn, params, ADAM, splits[0], **settings)
        return result.params, float(result.history["loss"][-1])

    def by_hand() -> Any:
        start = jax.tree.map(jnp.copy, params)
        carry, loss = (start, ADAM.init(start)), jnp.nan
        for number in range(epochs):
            carry, loss = epoch(carry, number, splits[0])
        return carry[0], float(loss)

    first, seconds = timing.timed({FIT: through_fit, HAND: by_hand}, rounds)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), first[FIT][0], first[HAND][0])
    return {"seconds": seconds, "largest_difference": float(max(jax.tree.leaves(apart)))}


def population_units(rounds: int, quick: bool) -> list[Unit]:
    """MLPs with one hidden layer on digits, whose images are stretched to a side."""
    cells = itertools.product((8, 28), (16, 64, 256), (8, 32))
    batch, chunk = (650, 1) if quick else (64, 4)
    shared = {"epochs": 2, "rounds": rounds, "learning_rate": RATE}
    shared |= {"batch_size": batch, "chunk_size": chunk}
    return [
        unit_of(
            Key(f"mlp {side**2}-{hidden}-10", "adam", f"{size} units", kind="population"),
            {"side": side, "hidden": hidden, "population": size, **shared},
            measure_population,
        )
        for side, hidden, size in ([(8, 4, 2)] if quick else cells)
    ]


def stretched(side: int) -> Splits:
    """Digits, whose images are stretched to the side."""
    train, validation, test = (
        Split(jax.image.resize(inputs, (len(labels), side, side, 1), "linear"), labels)
        for inputs, labels in tasks.image_splits("digits")
    )
    return train, validation, test


def measure_population(
    side: int, hidden: int, population: int, batch_size: int, epochs: int, chunk_size: int,
    rounds: int, **_: Any,
) -> dict[str, Any]:  # fmt: skip
    """Seconds in which units learn together, one by one and through fit, and of evolving."""
    train, validation, _test = splits = stretched(side)
    init_fn, loss_fn = learned(splits, hidden)[:2]
    settings: Any = {"epochs": epochs, "batch_size": batch_size}
    together, alone = (optabs.gadam(ADAM, units, **settings) for units in (population, 1))
    chunks = optabs.gadam(ADAM, population, chunk_size=chunk_size, **settings)
    resting = optabs.gadam(RESTING, population)
    state = together.init(jax.random.key(0), init_fn)
    keys = jax.random.split(jax.random.key(1), population)
    starts = [alone.init(key, init_fn) for key in keys]
    params = [jax.tree.map(lambda leaf: leaf[0], each.params) for each in starts]

    def one_by_one() -> jax.Array:
        ends = [jax.block_until_ready(alone.learn(each, loss_fn, train)) for each in starts]
        return jnp.concatenate([losses for _, losses in ends])

    def through_fit() -> jax.Array:
        ends = [
            optabs.fit(loss_fn, each, ADAM, train, key=key, progress=False, **settings)
            for each, key in zip(params, keys, strict=True)
        ]
        return jnp.stack([end.history["loss"][-1] for end in ends])

    contenders = {
        VMAP: lambda: together.learn(state, loss_fn, train)[1],
        CHUNKS: lambda: chunks.learn(state, loss_fn, train)[1],
        SINGLY: one_by_one,
        FITS: through_fit,
        EVOLVE: lambda: together.evolve(state, loss_fn, train, validation),
        ITSELF: lambda: resting.evolve(state, nothing, None, validation, fitness_fn=loss_fn),
    }
    first, seconds = timing.timed(contenders, rounds)
    losses = {name: float(jnp.mean(first[name])) for name in LEARNING}
    steps = epochs * -(-len(train.labels) // batch_size)
    return {"steps": steps, "seconds": seconds, "loss": losses}


def nothing(params: Any, batch: Any) -> jax.Array:
    """A loss of which nothing is learned."""
    return jnp.zeros([])
