"""Whole programs: epochs beside PyTorch's and a scan's, and populations."""

import functools
import importlib
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.lab import tasks, timing
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import Key, environment
from benchmarks.lab.study import Unit
from benchmarks.lab.tasks import Split, Splits
from benchmarks.lab.training import Optimizer, Task, training_step
from benchmarks.timing.steps import RATE, unit_of
from optabs.training.batches import take

Function = Callable[..., Any]

ADAM = optabs.adam(RATE)
# A unit of Adam's state that learns nothing: what is left of `evolve` is evolution.
RESTING = Optimizer(ADAM.init, lambda grads, state, params=None: (grads, state))
JAX, FIT, HAND = "jax, optabs.adam", "optabs.fit", "by hand"
HIDDEN = {"logistic": (), "mlp-256-128": (256, 128)}
TORCH: Mapping[str, Mapping[str, bool]] = {  # the forms of its Adam
    "plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True},
}  # fmt: skip
VMAP, CHUNKS = "under vmap", "in chunks"
SINGLY, FITS = "one by one", "optabs.fit one by one"
LEARNING = (VMAP, CHUNKS, SINGLY, FITS)
RATIOS = ((VMAP, SINGLY), (CHUNKS, SINGLY), (VMAP, FITS), (CHUNKS, FITS))
EVOLVE, ITSELF = "evolve", "evolve without training"
SHARE = 0.05  # of a generation, that an evolution without its training should take at most


def learned(splits: Splits, *hidden: int) -> tuple[Task, Function, Function]:
    """A perceptron on images; key -> its parameters; they and a batch -> loss."""
    net = tasks.mlp(splits[0].inputs[0].size, *hidden, 10)
    task = tasks.classification("", net, splits, steps=1, batch_size=1)
    return (
        task,
        lambda key: task.init(key)[0],
        lambda params, batch: task.loss_fn(params, {}, batch)[0],
    )


def epoch_of(task: Task, size: int | None, *, last: bool) -> Function:
    """Adam by hand: carry, an epoch's number, training set -> carry, mean loss.

    Without a size all are one batch; `last` trains on what fills no batch, too.
    """
    step = training_step(task.loss_fn, ADAM)

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


def carry_of(params: Any) -> Any:
    """Where an epoch begins; copies, since a program may take them for its results."""
    params = jax.tree.map(jnp.copy, params)
    return params, {}, ADAM.init(params)


def load_torch() -> tuple[Any, str]:
    """PyTorch, with all cores, and its name of the kind of device that JAX uses."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ArgumentError(
            f"PyTorch cannot be imported ({error}); call `make peers`."
        ) from error
    torch.set_num_threads(environment()["cores"] or 1)
    backend = jax.default_backend()
    if backend == "cpu" or (backend == "gpu" and torch.cuda.is_available()):
        return torch, "cpu" if backend == "cpu" else "cuda"
    raise ArgumentError(
        f"JAX runs on {backend!r} where this PyTorch cannot follow; set JAX_PLATFORMS=cpu or "
        "install a PyTorch for that device."
    )


def torch_epoch(
    params: Any, splits: Splits, batch_size: int, variant: str
) -> Callable[[], tuple[float, float]]:
    """An epoch of PyTorch's Adam from such weights: () -> mean loss, validation accuracy.

    The device is idle when it returns.
    """
    torch, device = load_torch()
    modules: list[Any] = []
    for _, layer in sorted(params["layers"].items()):
        linear = torch.nn.Linear(*layer["kernel"].shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(layer["kernel"].T)))
            linear.bias.copy_(torch.from_numpy(np.array(layer["bias"])))
        modules += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*modules[:-1]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, **TORCH[variant])
    images, labels, held_out, held_out_labels = (
        torch.from_numpy(np.array(leaf)).to(device) for split in splits[:2] for leaf in split
    )
    images, labels, held_out = images.flatten(1), labels.long(), held_out.flatten(1)

    def epoch() -> tuple[float, float]:
        order = torch.randperm(len(labels), device=device)
        batches = len(labels) // batch_size
        total = torch.zeros((), device=device)
        for rows in order[: batches * batch_size].view(batches, batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach()  # .item() would wait for the device at every step
        with torch.no_grad():
            right = (model(held_out).argmax(-1) == held_out_labels).float().mean()
        return float(total) / batches, float(right)

    return epoch


def epoch_units(data: pathlib.Path | None, rounds: int) -> list[Unit]:
    """Batches of three sizes; a missing PyTorch is said before the data are read."""
    _, device = load_torch()
    measure = functools.partial(measure_epochs, tasks.image_splits("mnist", data))
    asked: dict[str, Any] = {"dataset": "mnist", "model": "mlp-256-128", "rounds": rounds}
    asked |= {"learning_rate": RATE, "variants": list(TORCH), "device": device}
    return [
        unit_of(
            Key("mnist", "adam", f"batch {size}", "epoch"), measure, batch_size=size, **asked
        )
        for size in (64, 128, 256)
    ]


def measure_epochs(
    splits: Splits, batch_size: int, model: str, variants: list[str], rounds: int, **_: Any
) -> dict[str, Any]:
    """All start from the same weights, shuffle anew and score the validation set."""
    train, validation, _test = splits
    task, init_fn = learned(splits, *HIDDEN[model])[:2]
    epoch = jax.jit(epoch_of(task, batch_size, last=False), donate_argnums=0)
    evaluate, numbers = jax.jit(task.evaluate), itertools.count()
    params = init_fn(jax.random.key(0))
    carry = carry_of(params)

    def ours() -> tuple[float, float]:
        nonlocal carry
        carry, loss = epoch(carry, next(numbers), train)
        params, statistics, _ = carry
        return float(loss), float(evaluate(params, statistics, validation)[1])

    theirs = {
        f"torch, {variant}": torch_epoch(params, splits, batch_size, variant)
        for variant in variants
    }
    first, seconds = timing.timed({JAX: ours, **theirs}, rounds)
    # Alike if the contenders do the same work.
    names = ("loss", "validation_accuracy")
    shown = {side: dict(zip(names, each, strict=True)) for side, each in first.items()}
    return {"seconds": seconds, "first_epoch": shown}


def fit_units(rounds: int, quick: bool) -> list[Unit]:
    """Two models, batches of three sizes and all as one."""
    models = list(HIDDEN)[: 1 if quick else None]
    epochs = {400: 1} if quick else {16: 100, 64: 100, 256: 100, None: 1000}
    units = []
    for model, (size, count) in itertools.product(models, epochs.items()):
        asked = {"model": model, "batch_size": size, "epochs": count, "rounds": rounds}
        key = Key(model, "adam", f"batch {size or 'all'}", "fit")
        units.append(unit_of(key, measure_fit, **asked))
    return units


def measure_fit(
    model: str, batch_size: int | None, epochs: int, rounds: int
) -> dict[str, Any]:
    """Seconds of training on digits through both, and how far their parameters are apart."""
    splits = tasks.image_splits("digits")
    task, init_fn, loss_fn = learned(splits, *HIDDEN[model])
    epoch = jax.jit(epoch_of(task, batch_size, last=True), donate_argnums=0)
    params = init_fn(jax.random.key(0))
    settings: Any = {"batch_size": batch_size, "epochs": epochs, "progress": False}

    def through_fit() -> tuple[Any, float]:
        result = optabs.fit(loss_fn, params, ADAM, splits[0], **settings)
        return result.params, float(result.history["loss"][-1])

    def by_hand() -> tuple[Any, float]:
        carry, loss = carry_of(params), jnp.nan
        for number in range(epochs):
            carry, loss = epoch(carry, number, splits[0])
        return carry[0], float(loss)

    first, seconds = timing.timed({FIT: through_fit, HAND: by_hand}, rounds)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), first[FIT][0], first[HAND][0])
    return {"seconds": seconds, "largest_difference": float(max(jax.tree.leaves(apart)))}


def population_units(rounds: int, quick: bool) -> list[Unit]:
    """MLPs with one hidden layer on digits, whose images are stretched to a side."""
    cells = [(8, 4, 2)] if quick else itertools.product((8, 28), (16, 64, 256), (8, 32))
    batch, chunk = (650, 1) if quick else (64, 4)
    asked: dict[str, Any] = {"epochs": 2, "rounds": rounds, "learning_rate": RATE}
    asked |= {"batch_size": batch, "chunk_size": chunk}
    units = []
    for side, hidden, size in cells:
        asked |= {"side": side, "hidden": hidden, "population": size}
        key = Key(f"mlp {side**2}-{hidden}-10", "adam", f"{size} units", "population")
        units.append(unit_of(key, measure_population, **asked))
    return units


def stretched(side: int) -> Splits:
    """Digits, whose images are stretched to the side."""
    train, validation, test = (
        Split(jax.image.resize(inputs, (len(labels), side, side, 1), "linear"), labels)
        for inputs, labels in tasks.image_splits("digits")
    )
    return train, validation, test


def measure_population(
    side: int, hidden: int, population: int, chunk_size: int, rounds: int, **options: Any
) -> dict[str, Any]:
    """Seconds in which units learn together, one by one and through fit, and of evolving."""
    train, validation, _test = splits = stretched(side)
    _, init_fn, loss_fn = learned(splits, hidden)
    settings = {name: options[name] for name in ("epochs", "batch_size")}
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
    steps = settings["epochs"] * -(-len(train.labels) // settings["batch_size"])
    return {"steps": steps, "seconds": seconds, "loss": losses}


def nothing(params: Any, batch: Any) -> jax.Array:
    """A loss of which nothing is learned."""
    return jnp.zeros([])
