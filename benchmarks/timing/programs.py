"""Whole programs: epochs beside PyTorch's and a scan's, and populations."""

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.lab import tasks, timing
from benchmarks.lab.records import Key
from benchmarks.lab.study import Unit
from benchmarks.lab.tasks import Split, Splits
from benchmarks.lab.training import Optimizer, Task, training_step
from benchmarks.timing.pytorch import load_torch
from benchmarks.timing.steps import RATE, unit_of
from optabs.training.batches import rows_of_epoch, take

Function = Callable[..., Any]

ADAM = optabs.adam(RATE)
# A unit of Adam's state that learns nothing: what is left of `evolve` is evolution.
RESTING = Optimizer(ADAM.init, lambda grads, state, params=None: (grads, state))
JAX, FIT, HAND = "jax, optabs.adam", "optabs.fit", "by hand"
HIDDEN = {"logistic": (), "mlp-256-128": (256, 128)}
TORCH: Mapping[str, Mapping[str, bool]] = {  # the forms of its Adam
    "plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True},
}  # fmt: skip
EPOCHS = {16: 100, 64: 100, 256: 100, None: 1000}  # in a run, by the size of a batch
VMAP, CHUNKS = "under vmap", "in chunks"
SINGLY, FITS = "one by one", "optabs.fit one by one"
LEARNING = (VMAP, CHUNKS, SINGLY, FITS)
RATIOS = ((VMAP, SINGLY), (CHUNKS, SINGLY), (VMAP, FITS), (CHUNKS, FITS))
EVOLVE, ITSELF = "evolve", "evolve without training"


def learned(train: Split, *hidden: int) -> tuple[Task, Function, Function]:
    """A perceptron on images; key -> its parameters; they and a batch -> loss."""
    net = tasks.mlp(train.inputs[0].size, *hidden, 10)
    task = tasks.classification("", net, (train,) * 3, steps=1, batch_size=1)

    def loss_fn(params: Any, batch: Split) -> jax.Array:
        return task.loss_fn(params, {}, batch)[0]

    return task, lambda key: task.init(key)[0], loss_fn


def epoch_of(task: Task, size: int | None) -> Function:
    """Adam by hand: carry, which is donated, and an epoch's number -> carry, mean loss.

    What fills no batch is trained on, too; without a size all are one batch.
    """
    step = training_step(task.loss_fn, ADAM)

    def epoch(carry: Any, number: Any, train: Split) -> tuple[Any, jax.Array]:
        if size is None:
            return step(carry, train)
        order = rows_of_epoch(jax.random.key(0), number, len(train.labels), size, "shuffle")
        full = len(order) // size * size
        batches = order[:full].reshape(-1, size)
        carry, losses = jax.lax.scan(
            lambda at, rows: step(at, take(train, rows)), carry, batches
        )
        if full < len(order):
            carry, loss = step(carry, take(train, order[full:]))
            losses = jnp.append(losses, loss)
        return carry, losses.mean()

    compiled = jax.jit(epoch, donate_argnums=0)
    return lambda carry, number: compiled(carry, number, task.train)


def torch_epoch(params: Any, splits: Splits, size: int, form: str) -> Function:
    """An epoch of PyTorch's Adam from such weights: () -> mean loss, validation accuracy."""
    torch, device = load_torch()
    modules: list[Any] = []
    for _, layer in sorted(params["layers"].items()):
        linear = torch.nn.Linear(*layer["kernel"].shape)
        weights = {"weight": layer["kernel"].T, "bias": layer["bias"]}
        linear.load_state_dict({n: torch.tensor(np.array(x)) for n, x in weights.items()})
        modules += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(torch.nn.Flatten(), *modules[:-1]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, **TORCH[form])
    images, labels, held_out, held_out_labels = (
        torch.tensor(np.array(leaf)).to(device) for split in splits[:2] for leaf in split
    )
    labels = labels.long()

    def epoch() -> tuple[float, float]:
        losses = []
        for rows in torch.randperm(len(labels), device=device).split(size):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())  # .item() would wait for the device at every step
        with torch.no_grad():
            right = model(held_out).argmax(-1) == held_out_labels
        return float(torch.stack(losses).mean()), float(right.float().mean())

    return epoch


def epoch_units(data: pathlib.Path | None, rounds: int) -> Iterator[Unit]:
    """Batches of three sizes; a missing PyTorch is said before the data are read."""
    load_torch()
    measure = functools.partial(measure_epochs, tasks.image_splits("mnist", data))
    for size in (64, 128, 256):
        asked = {"batch_size": size, "forms": list(TORCH), "rounds": rounds}
        yield unit_of(Key("mnist", "adam", f"batch {size}", "epoch"), measure, **asked)


def measure_epochs(
    splits: Splits, batch_size: int, forms: list[str], rounds: int
) -> dict[str, Any]:
    """All start from the same weights, shuffle anew and score the validation set."""
    task, init_fn, _ = learned(splits[0], *HIDDEN["mlp-256-128"])
    epoch, evaluate = epoch_of(task, batch_size), jax.jit(task.evaluate)
    params, numbers = init_fn(jax.random.key(0)), itertools.count()
    theirs = {f"torch, {x}": torch_epoch(params, splits, batch_size, x) for x in forms}
    carry: Any = params, {}, ADAM.init(params)

    def ours() -> tuple[float, float]:
        nonlocal carry
        carry, loss = epoch(carry, next(numbers))
        return float(loss), float(evaluate(*carry[:2], splits[1])[1])

    first, seconds = timing.timed({JAX: ours} | theirs, rounds)
    # Alike if the contenders do the same work.
    names = ("loss", "validation_accuracy")
    shown = {side: dict(zip(names, each, strict=True)) for side, each in first.items()}
    return {"seconds": seconds, "first_epoch": shown}


def fit_units(rounds: int) -> Iterator[Unit]:
    """Two models, batches of three sizes and all as one."""
    for model, (size, epochs) in itertools.product(HIDDEN, EPOCHS.items()):
        asked = {"model": model, "batch_size": size, "epochs": epochs, "rounds": rounds}
        key = Key(model, "adam", f"batch {size or 'all'}", "fit")
        yield unit_of(key, measure_fit, **asked)


def measure_fit(
    model: str, batch_size: int | None, epochs: int, rounds: int
) -> dict[str, Any]:
    """Seconds of training on digits through both, and how far their parameters are apart."""
    train = tasks.image_splits("digits")[0]
    task, init_fn, loss_fn = learned(train, *HIDDEN[model])
    epoch, params = epoch_of(task, batch_size), init_fn(jax.random.key(0))
    settings: Any = {"batch_size": batch_size, "epochs": epochs, "progress": False}

    def by_hand() -> Any:
        carry: Any = jax.tree.map(jnp.copy, params), {}, ADAM.init(params)
        for number in range(epochs):
            carry, _ = epoch(carry, number)
        return carry[0]

    def through_fit() -> Any:
        return optabs.fit(loss_fn, params, ADAM, train, **settings).params

    first, seconds = timing.timed({FIT: through_fit, HAND: by_hand}, rounds)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), first[FIT], first[HAND])
    return {"seconds": seconds, "largest_difference": float(max(jax.tree.leaves(apart)))}


def population_units(rounds: int) -> Iterator[Unit]:
    """MLPs with one hidden layer on digits, whose images are stretched to a side."""
    for side, hidden, size in itertools.product((8, 28), (16, 64, 256), (8, 32)):
        asked = {"side": side, "hidden": hidden, "population": size, "rounds": rounds}
        asked |= {"epochs": 2, "batch_size": 64, "chunk_size": 4}
        key = Key(f"mlp {side**2}-{hidden}-10", "adam", f"{size} units", "population")
        yield unit_of(key, measure_population, **asked)


def measure_population(
    side: int, hidden: int, population: int, chunk_size: int, rounds: int, **settings: Any
) -> dict[str, Any]:
    """Seconds in which units learn together, one by one and through fit, and of evolving."""
    train, validation, _test = (
        Split(jax.image.resize(inputs, (len(labels), side, side, 1), "linear"), labels)
        for inputs, labels in tasks.image_splits("digits")
    )
    _, init_fn, loss_fn = learned(train, hidden)
    together, alone = (optabs.gadam(ADAM, units, **settings) for units in (population, 1))
    chunks = optabs.gadam(ADAM, population, chunk_size=chunk_size, **settings)
    resting, nothing = optabs.gadam(RESTING, population), lambda params, batch: jnp.zeros([])
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
    steps = settings["epochs"] * -(-len(train.labels) // settings["batch_size"])
    return {"steps": steps, "seconds": seconds, "loss": losses}
