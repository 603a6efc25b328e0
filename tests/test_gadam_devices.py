"""A population over eight devices: the run of one, and nothing sent while units learn."""

import functools
from typing import Any

import chex
import gadam_problem as networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import received
from gadam_problem import SIZE, data, init_fn, loss_fn
from jax.sharding import AxisType, Mesh, PartitionSpec

import optabs
from benchmarks.lab.timing import tree_bytes
from optabs.evolution.generation import breed, programs, select_survivors
from optabs.evolution.state import Losses, Unit

KEY = jax.random.key(3)
VALIDATION = data(16, seed=1)
LOSSES = Losses(loss_fn, loss_fn)


def mesh_of(kind: AxisType = AxisType.Explicit, devices: int = 8, others: int = 1) -> Mesh:
    if others == 1:
        return jax.make_mesh((devices,), ("population",), axis_types=(kind,))
    return jax.make_mesh((devices, others), ("population", "model"), axis_types=(kind,) * 2)


@pytest.fixture(scope="module")
def on_one_device() -> optabs.GadamResult:
    result = networks.uninterrupted()
    for trials in result.history["trial_losses"]:
        assert np.diff(np.sort(trials)).min() > 1e-3  # survivors are not a matter of rounding
    return result


def assert_same_run(ours: optabs.GadamResult, wanted: optabs.GadamResult) -> None:
    for name in ("survivors", "parents"):
        np.testing.assert_array_equal(ours.history[name], wanted.history[name])
    for name in ("losses", "trial_losses", "training_losses", "diversity"):
        np.testing.assert_allclose(ours.history[name], wanted.history[name], rtol=0, atol=1e-4)
    chex.assert_trees_all_close(ours.params, wanted.params, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        mesh_of(AxisType.Auto),
        mesh_of(AxisType.Explicit),
        mesh_of(AxisType.Auto, 4, 2),
        mesh_of(AxisType.Explicit, 2, 4),
    ],
    ids=["auto", "explicit", "auto, two axes", "explicit, two axes"],
)
def test_the_run_of_one_device(mesh: Mesh, on_one_device: optabs.GadamResult) -> None:
    result = networks.run(learns={"mesh": mesh})
    assert_same_run(result, on_one_device)
    share = SIZE // mesh.shape["population"]
    for leaf in jax.tree.leaves((result.population, result.state.opt_state)):
        assert {part.data.shape[0] for part in leaf.addressable_shards} == {share}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(result.params))
    chex.assert_trees_all_equal(
        result.params,
        jax.tree.map(lambda leaf: leaf[0], jax.device_get(result.population)),
        strict=True,
    )


@pytest.mark.slow
def test_chunks_on_devices(on_one_device: optabs.GadamResult) -> None:
    mesh = mesh_of(devices=2)
    assert_same_run(networks.run(learns={"mesh": mesh, "chunk_size": 3}), on_one_device)


@pytest.mark.slow
def test_a_population_made_elsewhere_is_laid_out_where_it_is_needed() -> None:
    wanted, spread = networks.learner(), networks.learner(mesh=mesh_of())
    state = jax.device_get(wanted.init(KEY, init_fn)._replace(key=jnp.zeros(())))
    state = state._replace(key=wanted.init(KEY, init_fn).key)
    ours, losses = spread.learn(state, loss_fn, data())
    theirs, wanted_losses = wanted.learn(state, loss_fn, data())
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    assert len(ours.params["w"].sharding.device_set) == 8
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-4, atol=1e-5)


def bred(mesh: Mesh | None) -> Any:
    """Children, survivors and pairs of parents of a population with losses of its own."""
    losses = jnp.linspace(0.0, 1.0, SIZE) ** 2
    survivors = jnp.array([3, 9, 0, 15, 4, 8, 1, 7], jnp.int32)
    learner = networks.learner(mesh=mesh, mutation_rate=0.5)
    plan, layout = learner.plan, learner.plan.layout

    def breed_and_select(units: Unit, replicated: Any) -> Any:
        key, losses, survivors = replicated
        population = layout.all_gather(units)
        children, pairs = breed(plan, learner.hyperparams, key, population, losses)
        return (children, select_survivors(layout, population, children, survivors)), pairs

    replicated = layout.replicated((KEY, losses, survivors))
    units = learner.init(KEY, init_fn).units
    return jax.device_get(jax.jit(layout.shard_map(breed_and_select))(units, replicated))


@pytest.fixture(scope="module")
def bred_on_one_device() -> Any:
    return bred(None)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_the_operators_are_the_same_bit_for_bit(devices: int, bred_on_one_device: Any) -> None:
    """Of equal losses, children, parents and survivors on any number of devices."""
    ours = bred(mesh_of(devices=devices))
    chex.assert_trees_all_equal(ours, bred_on_one_device, strict=True)


def compiled(name: str, learner: optabs.Gadam, state: optabs.GadamState) -> str:
    """The text of one of the population's programs."""
    put = learner.plan.layout.replicated
    arguments = [state, put(data())]
    if name == "evolve":
        rates = put(jax.tree.map(jnp.float32, learner.hyperparams))
        arguments = [state, rates, put(data()), put(VALIDATION)]
    program = getattr(programs(learner.plan, LOSSES), name)
    return program.lower(*arguments).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_nothing_is_sent_while_units_learn(kind: AxisType) -> None:
    learner = networks.learner(mesh=mesh_of(kind))
    state = learner.init(KEY, init_fn)
    assert received(compiled("learn", learner, state)) == {}


@pytest.mark.slow
def test_an_evolution_sends_every_parent_and_every_child_once() -> None:
    """Their parameters d and Adam's two moments: 6 g d numbers, as the survey's O(g d)."""
    learner = networks.learner(mesh=mesh_of())
    state = learner.init(KEY, init_fn)
    found = received(compiled("evolve", learner, state))
    d = tree_bytes(state.params) // (4 * SIZE)
    counts, losses = 2 * SIZE, 4 * SIZE  # Adam's step counts; a fitness, two trials, training
    assert tree_bytes(state.units) == 4 * (3 * SIZE * d + counts)
    assert found["all-gather"] == 4 * (6 * SIZE * d + 2 * counts + losses)
    assert found["all-reduce"] == 4 * (d + 1)  # the mean and the diversity
    assert set(found) == {"all-gather", "all-reduce"}


def test_what_is_sent_is_read_from_the_program() -> None:
    mesh = mesh_of(AxisType.Auto)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec("population"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    def gathers(x: jax.Array) -> Any:
        whole = jax.lax.all_gather(x.astype(jnp.bfloat16), "population", tiled=True)
        return whole.astype(jnp.float32), jax.lax.psum(x, "population")

    text = jax.jit(gathers).lower(jnp.ones((16, 3))).compile().as_text()
    found = received(text)
    assert found["all-reduce"] == 2 * 3 * 4
    assert found["all-gather"] in (16 * 3 * 2, 16 * 3 * 4)  # XLA may gather in float32
    line = "%a = (f32[2,3]{1,0}, pred[16,3]{1,0}) all-gather-start(%b), dimensions={0}"
    assert received(line) == {"all-gather": 48}
    assert received('%a = f32[2,3]{1,0} add(%b, %c), metadata={op_name="all-gather"}') == {}
