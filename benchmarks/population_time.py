"""The time of a population that learns under vmap, and what evolving adds to it."""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import typer
from flax import nnx
from rich.progress import track

import optabs
from benchmarks import store
from benchmarks.lab import report, timing
from benchmarks.lab.arguments import fits, numbers_of, positive
from benchmarks.lab.data import Dataset, load
from benchmarks.lab.models import MLP

RESULTS = pathlib.Path("runs/population_time")
RATE = 1e-3
SHARE = 0.05  # of a generation, that an evolution without its training should take at most
VMAP, CHUNKS = "under vmap", "in chunks"
ALONE, FIT = "one by one", "optabs.fit one by one"
LEARNING = (VMAP, CHUNKS, ALONE, FIT)
RATIOS = ((VMAP, ALONE), (CHUNKS, ALONE), (VMAP, FIT), (CHUNKS, FIT))
EVOLVE, ITSELF = "evolve", "evolve without training"
ADAM = optabs.adam(RATE)
# A unit of Adam's state that learns nothing: what is left of `evolve` is evolution.
RESTING = optax.GradientTransformation(
    ADAM.init, lambda grads, state, params=None: (grads, state)
)


class Setting(NamedTuple):
    """A population, what its units are and how long they learn at a time."""

    side: int  # pixels of the images' side
    hidden: int  # units of the MLP's only hidden layer
    population: int
    batch_size: int
    epochs: int
    chunk_size: int  # of the contender that trains so many units under vmap at a time

    @property
    def name(self) -> str:
        """Of its record."""
        return f"mlp-{self.side**2}-{self.hidden}-10-g{self.population}-b{self.batch_size}"


class Problem(NamedTuple):
    """What the units learn."""

    init_fn: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any], jax.Array]
    train: tuple[jax.Array, jax.Array]
    validation: tuple[jax.Array, jax.Array]


def population_time(
    sides: Annotated[
        str, typer.Option(help="pixels of a side; digits has 8, and is stretched to others")
    ] = "8,28",
    hidden: Annotated[str, typer.Option(help="widths of the hidden layer")] = "16,64,256",
    populations: Annotated[str, typer.Option(help="one or more sizes")] = "8,32",
    batch_size: Annotated[int, typer.Option(help="of every unit")] = 64,
    epochs: Annotated[int, typer.Option(help="that units learn at a time")] = 2,
    chunk_size: Annotated[int, typer.Option(help="units trained at a time, for one more")] = 4,
    rounds: Annotated[int, typer.Option(help="runs of each contender, in turns")] = 7,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Times a population of MLPs on digits: learning together and one by one, and evolving.

    One by one is the same compiled program for a population of 1, called once per unit, and
    `optabs.fit` for each. Evolution is timed with children that do not learn.
    """
    grid = [
        numbers_of(text, name)
        for text, name in (
            (sides, "sides"),
            (hidden, "hidden"),
            (populations, "populations"),
        )
    ]
    for number, name in (
        (batch_size, "batch-size"),
        (epochs, "epochs"),
        (chunk_size, "chunk-size"),
        (rounds, "rounds"),
    ):
        positive(number, name)
    data = load("digits")
    fits(batch_size, "digits", len(data.train_labels))
    store.prepare_folder(out)
    environment = store.environment()
    settings = [
        Setting(side, width, size, batch_size, epochs, chunk_size)
        for side, width, size in itertools.product(*grid)
    ]
    results = {}
    for setting in track(settings, description="population_time"):
        found = results[setting] = compare(setting, data, rounds)
        config = setting._asdict() | {"rounds": rounds, "learning_rate": RATE}
        record = {"config": config, "results": found, "environment": environment}
        store.write_json(out / "runs" / f"{setting.name}.json", record)
        jax.clear_caches()
    tables = [_learning_table(results), _evolution_table(results)]
    for table in tables:
        table.show()
    text = "\n".join(table.markdown() for table in tables)
    store.write_bytes(out / "population_time.md", text.encode())
    typer.echo(f"tables: {out / 'population_time.md'}")


def problem_of(setting: Setting, data: Dataset) -> Problem:
    """An MLP with one hidden layer on digits, whose images are stretched to the side."""
    side = setting.side
    widths = (side**2, setting.hidden, data.classes)
    graph = nnx.graphdef(MLP(widths, rngs=nnx.Rngs(0)))

    def init_fn(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(MLP(widths, rngs=nnx.Rngs(key)), nnx.Param))

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits = nnx.merge(graph, params)(images)
        return optabs.losses.softmax_cross_entropy(logits, labels).mean()

    def part(images: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
        shape = (len(images), side, side, 1)
        return jax.image.resize(jnp.asarray(images), shape, "linear"), jnp.asarray(labels)

    train = part(data.train_images, data.train_labels)
    return Problem(
        init_fn, loss_fn, train, part(data.validation_images, data.validation_labels)
    )


def compare(setting: Setting, data: Dataset, rounds: int) -> dict[str, Any]:
    """Seconds of each contender, in turns, after a run of each to warm up."""
    problem = problem_of(setting, data)
    contenders = _contenders(setting, problem)
    losses = {name: float(jnp.mean(contenders[name]())) for name in LEARNING}
    for name in (EVOLVE, ITSELF):
        jax.block_until_ready(contenders[name]())
    clocks = {
        name: functools.partial(timing.seconds_of, run) for name, run in contenders.items()
    }
    seconds = timing.in_turns(clocks, rounds, float("inf"))
    steps = setting.epochs * -(-len(problem.train[1]) // setting.batch_size)
    # A generation: everyone learns, the children are bred, and learn as long.
    pairs = list(zip(seconds[ITSELF], seconds[VMAP], strict=True))
    return {
        "steps": steps,
        "seconds": seconds,
        "median_seconds": timing.medians(seconds),
        "ratio": {
            f"{ours} / {theirs}": timing.ratio(seconds[ours], seconds[theirs])._asdict()
            for ours, theirs in RATIOS
        },
        "share_of_generation": timing.spread([x / (x + 2 * y) for x, y in pairs])._asdict(),
        # In how many steps of the population, learned by parents and children, it is SHARE.
        "steps_for_share": timing.spread(
            [x / y * steps * (1 - SHARE) / SHARE for x, y in pairs]
        )._asdict(),
        # Alike if the contenders do the same work.
        "loss": losses,
    }


def _contenders(setting: Setting, problem: Problem) -> dict[str, Callable[[], Any]]:
    """Each returns arrays; those that learn, the units' mean losses over the last epoch."""
    size = setting.population
    settings: dict[str, Any] = {"epochs": setting.epochs, "batch_size": setting.batch_size}
    init_fn, loss_fn, train, validation = problem
    together, alone = (optabs.gadam(ADAM, g, **settings) for g in (size, 1))
    chunks = optabs.gadam(ADAM, size, chunk_size=setting.chunk_size, **settings)
    resting = optabs.gadam(RESTING, size)
    state = together.init(jax.random.key(0), init_fn)
    keys = jax.random.split(jax.random.key(1), size)
    starts = [alone.init(key, init_fn) for key in keys]
    params = [jax.tree.map(lambda leaf: leaf[0], each.params) for each in starts]

    def under_vmap() -> jax.Array:
        return together.learn(state, loss_fn, train)[1]

    def in_chunks() -> jax.Array:
        return chunks.learn(state, loss_fn, train)[1]

    def one_by_one() -> jax.Array:
        ends = [jax.block_until_ready(alone.learn(each, loss_fn, train)) for each in starts]
        return jnp.concatenate([losses for _, losses in ends])

    def through_fit() -> jax.Array:
        ends = [
            optabs.fit(loss_fn, each, ADAM, train, key=key, progress=False, **settings)
            for each, key in zip(params, keys, strict=True)
        ]
        return jnp.stack([end.history["loss"][-1] for end in ends])

    def evolve() -> Any:
        return together.evolve(state, loss_fn, train, validation)

    def itself() -> Any:
        return resting.evolve(state, _nothing, None, validation, fitness_fn=loss_fn)

    return {
        VMAP: under_vmap,
        CHUNKS: in_chunks,
        ALONE: one_by_one,
        FIT: through_fit,
        EVOLVE: evolve,
        ITSELF: itself,
    }


def _nothing(params: Any, batch: Any) -> jax.Array:
    return jnp.zeros([])


def _named(setting: Setting) -> list[str]:
    return [f"{setting.side**2}-{setting.hidden}-10", str(setting.population)]


def _learning_table(results: dict[Setting, dict[str, Any]]) -> report.Table:
    rows = []
    for setting, found in results.items():
        times = [f"{1e3 * found['median_seconds'][name]:.1f}" for name in LEARNING]
        ratios = [f"{found['ratio'][f'{a} / {b}']['median']:.2f}" for a, b in RATIOS]
        rows.append([*_named(setting), *times, *ratios])
    setting, found = next(iter(results.items()))
    return report.Table(
        f"Milliseconds in which all units make {found['steps']} steps (medians of runs in "
        f"turns; chunks are of {setting.chunk_size} units), and ratios of times",
        ["MLP", "units", *LEARNING, *(f"{ours} / {theirs}" for ours, theirs in RATIOS)],
        rows,
    )


def _evolution_table(results: dict[Setting, dict[str, Any]]) -> report.Table:
    rows = []
    for setting, found in results.items():
        share = timing.Spread(*(100 * x for x in found["share_of_generation"].values()))
        times = [f"{1e3 * found['median_seconds'][name]:.1f}" for name in (EVOLVE, ITSELF)]
        enough = f"{found['steps_for_share']['median']:.0f}"
        rows.append([*_named(setting), *times, str(2 * found["steps"]), str(share), enough])
    return report.Table(
        "Milliseconds of an evolution with and without its children's training, its share of "
        f"a generation in percent, and in a generation of how many steps it is {SHARE:.0%}",
        ["MLP", "units", EVOLVE, ITSELF, "steps", "share", f"steps for {SHARE:.0%}"],
        rows,
    )
