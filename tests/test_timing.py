"""What the measurements of time measure; their results are no test's business."""

import inspect
import math
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import assert_refused, assert_reported, call

import optabs
from benchmarks.lab import spreads, tasks, timing
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import FILE, Key, Record, Records
from benchmarks.lab.training import training_step
from benchmarks.timing import programs, steps, tables
from benchmarks.timing.programs import CHUNKS, EVOLVE, FIT, FITS, HAND, ITSELF, LEARNING, VMAP
from benchmarks.timing.steps import ADAM, COPY, DAO_E, OPTAX, OURS, makers_of, measure


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 1e-4)


def cost(optimizer, shape=(64,)):
    runner = timing.runner_of(optimizer, jnp.zeros(shape), jnp.ones(shape))
    return timing.cost_of(runner.compiled, math.prod(shape))


def test_every_named_optimizer_is_timed():
    named = {
        name
        for name, value in vars(optabs).items()
        if callable(value) and "learning_rate" in inspect.signature(value).parameters
    }
    assert named <= {*OURS, DAO_E}


@pytest.mark.parametrize("name", [name for name in OPTAX if name != "nadam"])
def test_sides_of_one_rule_compute_the_same_updates(name):
    with jax.enable_x64(True):
        params = jax.random.normal(jax.random.key(0), (3, 5), float)
        sides = [optax.with_extra_args_support(make[name]()) for make in (OURS, OPTAX)]
        states = [side.init(params) for side in sides]
        for key in jax.random.split(jax.random.key(1), 5):
            grads = jax.random.normal(key, params.shape, float)
            both = [sides[i].update(grads, states[i], params) for i in (0, 1)]
            states = [state for _, state in both]
            np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_no_step_moves_more_bytes_than_optax_and_absolute_rules_have_no_root(name):
    ours, theirs = (cost(make(), (4096,)) for make in list(makers_of(name).values())[:2])
    rival = list(makers_of(name))[1]
    assert rival == f"optax.{name.split('_abs')[0]}"
    assert ours["bytes_accessed"] <= 1.02 * theirs["bytes_accessed"]
    assert (ours["roots"] > 0) == (
        "abs" not in name and name not in ("sgd", "momentum", "nag")
    )


def test_cost_counts_passes_over_arrays_and_loops_do_what_calls_do():
    sgd = cost(optabs.sgd(1e-3))
    assert (sgd["kernels"], sgd["copies"], sgd["roots"]) == (1, 0, 0)
    assert sgd["bytes_accessed"] == pytest.approx(12, abs=0.5)
    assert cost(optabs.adam(1e-3))["transcendentals"] >= 1  # as the tables say of a CPU
    grads = jnp.array([1.0, -2.0])
    first, second = (timing.runner_of(optabs.adam(0.1), jnp.zeros(2), grads) for _ in range(2))
    first.call(3)
    second.loop(3)
    chex.assert_trees_all_close(first.carry, second.carry)


def test_turns_rotate_end_after_the_budget_and_are_divided_round_by_round():
    seen = []
    clocks = {name: (lambda name=name: seen.append(name) or 1.0) for name in "abc"}
    results = timing.in_turns(clocks, rounds=9, seconds=1e-9)
    assert "".join(seen) == "abcbcacab"
    assert results == dict.fromkeys("abc", [1.0] * timing.FEWEST_ROUNDS)
    assert spreads.ratio([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]).median == 2.0  # by rounds


def test_the_networks_have_their_sizes():
    shapes = steps.shapes_of("resnet18")
    assert (len(shapes), sum(map(math.prod, shapes))) == (62, 11_173_962)
    kernels = [(3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 512, 512), (1, 1, 256, 512), (512, 10)]
    assert [shapes.count(kernel) for kernel in kernels] == [1, 4, 3, 1, 1]
    assert sum(map(math.prod, steps.shapes_of("mlp"))) == pytest.approx(1e6, rel=0.01)
    assert steps.shapes_of("1.6e7") == ((16_000_000,),)


def test_a_comparison_has_every_side_and_narrow_states_move_fewer_bytes():
    found = measure(makers_of("adam_abs", "8bit"), [(64, 128)] * 2, 2, 1.0, copy=True)
    sides = ["optabs.adam_abs, 8bit", "optax.adam", "optabs.adam", "optabs.adam_abs"]
    assert (found["parameters"], found["leaves"]) == (2 * 64 * 128, 2)
    assert list(found["cost"]) == list(found["must_move_bytes"]) == sides
    for mode in timing.MODES:
        assert list(found[mode]["seconds"]) == [*sides, COPY]
        assert all(len(times) == 2 for times in found[mode]["seconds"].values())
        assert len(set(found[mode]["repeats"].values())) == 1
    # Gradients are read, parameters and state read and written; a range for 64 entries.
    for side, state in ((sides[0], 2 * (1 + 2 / 64)), (sides[3], 8)):
        needed = found["must_move_bytes"][side]
        assert needed == pytest.approx(4 + 2 * (4 + state), abs=0.01)
        assert tables.state_of(found, side) == pytest.approx(state, abs=0.01)


def test_every_storage_and_both_baselines_are_timed_beside_adam_at_the_experts_rate():
    made = steps.contenders()
    params = jnp.zeros((100, 100))
    assert list(made) == [
        "dao_e", "dao_e, float32", "dao_e, int8", "dao_e, thinned", "dao_e, uniform",
        "dao_e, paper", ADAM, "sgd alone", "adam alone", "rmsprop alone", "lion alone",
    ]  # fmt: skip
    states = [jax.eval_shape(make().init, params) for make in made.values()]
    bytes_of_dao_e = [round(timing.tree_bytes(state) / 1e4) for state in states[:6]]
    assert bytes_of_dao_e == [24, 32, 20, 17, 16, 24]
    grads = jnp.array([1.0, -2.0, 0.5])
    for side in (ADAM, "adam alone"):
        update, _ = made[side]().update(grads, made[side]().init(grads), grads)
        np.testing.assert_allclose(update, -1e-3 * jnp.sign(grads), rtol=1e-4)


def test_steps_are_told_a_loss_and_a_batch_and_training_takes_the_gradient():
    net, batch = tasks.mlp(6, 4, 10), steps.batch_of((6,))
    assert [part.shape for part in batch] == [(128, 6), (128,)]

    def update(grads, state, params=None, *, value, batch):
        # Whatever it is told has a share in the step.
        factor = -0.1 * value * jnp.var(batch.inputs)
        return jax.tree.map(lambda g, p: factor * (g + 0.01 * p), grads, params), state + 1

    def loss_fn(params, statistics, batch):
        logits, statistics = net.apply(params, statistics, batch.inputs, True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean(), statistics

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)
    params, statistics = net.init(jax.random.key(0))
    carry = params, statistics, optimizer.init(params)
    step = jax.jit(training_step(loss_fn, optimizer))
    for _ in range(3):
        carry, loss = step(carry, batch)
        (told, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch)
        np.testing.assert_allclose(loss, told, rtol=1e-5)
        apart = timing.runner_of(optimizer, params, grads, value=told, batch=batch)
        apart.call(1)
        params, count = apart.carry
        assert count == 1
    chex.assert_trees_all_close(carry[0], params, rtol=1e-5, atol=1e-6)
    assert carry[2] == 3


def mixed(folder, device, state):
    """Records of DAO-E that took so many times Adam's seconds."""
    kept = Records(folder)

    def add(size, setting, **result):
        environment = {"device": f"{device}: {device}"}
        kept.add(Record(Key(size, DAO_E, setting, DAO_E), {}, result, "", environment))

    for size, parameters, over in (("1e4", 1e4, 9.0), ("1e8", 1e8, 1.9), ("mlp", 1e6, 5.0)):
        times = {DAO_E: [over, 2 * over], "dao_e, uniform": [over, over], ADAM: [1.0, 2.0]}
        needed = dict.fromkeys(times, 12 + 2 * (state if size == "1e8" else 30.0))
        call = {"seconds": times}
        add(size, "step", parameters=parameters, must_move_bytes=needed, call=call)
    for size, share in (("mlp", 0.17), ("resnet18", 0.06)):
        whole = {f"training, {DAO_E}": [20.0], f"training, {ADAM}": [10.0]}
        add(size, "training", seconds={DAO_E: [20 * share], ADAM: [1.0], **whole})
    return kept


def test_bars_are_taken_where_they_were_set(tmp_path):
    bars = tables.bars_of(mixed(tmp_path / "gpu", "gpu", 20.02))
    shown = [("1.9", "met"), ("6", "missed"), ("2", "-"), ("20", "met")]
    assert [(bar.measured, bar.verdict) for bar in bars] == shown
    verdicts = [bar.verdict for bar in tables.bars_of(mixed(tmp_path / "cpu", "cpu", 20.06))]
    assert verdicts == ["-", "-", "missed", "missed"]


def test_sums_of_experts_and_shares_of_evolutions():
    times = {DAO_E: [4.0, 9.0], ADAM: [1.0, 3.0], "sgd alone": [0.5, 1.0]}
    times["adam alone"] = [1.5, 2.0]
    assert tables._over_experts(times) == {DAO_E: spreads.ratio([4.0, 9.0], [2.0, 3.0])}
    assert tables._over_adam(times) == {DAO_E: spreads.ratio([4.0, 9.0], [1.0, 3.0])}
    share, enough = tables.evolution_of({VMAP: [2.0, 4.0], ITSELF: [1.0, 2.0]}, 2)
    assert share.median == 0.2  # 1 of 1 + 2 + 2
    # 2 steps take 2 seconds: 19 steps take 19 times the evolution's second.
    assert enough.median == pytest.approx(19.0)


@pytest.mark.slow
def test_all_units_learn_alike():
    found = programs.measure_population(8, 16, 4, 2, 1, epochs=3, batch_size=65)
    losses = found["loss"]
    assert found["steps"] == 3 * 20
    assert list(found["seconds"]) == [*LEARNING, EVOLVE, ITSELF]
    assert losses[CHUNKS] == pytest.approx(losses[VMAP], rel=1e-5)
    assert all(loss < np.log(10) for loss in losses.values())
    np.testing.assert_allclose(list(losses.values()), losses[FITS], rtol=0.1)


@pytest.mark.slow
def test_a_resting_population_evolves_and_learns_nothing():
    splits = programs.stretched(28)
    assert splits[0].inputs.shape == (1300, 28, 28, 1)
    _, init_fn, loss_fn = programs.learned(splits, 4)
    resting = optabs.gadam(programs.RESTING, 4, 0.0)
    state = optabs.gadam(programs.ADAM, 4, 0.0).init(jax.random.key(0), init_fn)
    shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(state.params)}
    assert shapes == {(784, 4), (4,), (4, 10), (10,)}
    rested, _ = resting.learn(state, programs.nothing)
    chex.assert_trees_all_equal(rested.units, state.units, strict=True)
    ended, told = resting.evolve(state, programs.nothing, None, splits[1], fitness_fn=loss_fn)
    # Without mutation or learning every entry is one of the first population's.
    pairs = zip(jax.tree.leaves(ended.params), jax.tree.leaves(state.params), strict=True)
    assert all(bool((new[:, None] == old[None]).any(1).all()) for new, old in pairs)
    judged = jax.vmap(loss_fn, in_axes=(0, None))(ended.params, splits[1])
    np.testing.assert_allclose(ended.losses, judged, rtol=1e-5)
    assert np.ptp(np.asarray(told.losses)) > 0


def test_epochs_shuffle_anew_and_learn():
    splits = tasks.image_splits("digits")
    found = programs.measure_epochs(splits, 100, "mlp-256-128", [], 3)
    (first,) = found["first_epoch"].values()
    assert 0.5 < first["loss"] < np.log(10)
    assert 0.5 < first["validation_accuracy"] <= 1
    assert len(found["seconds"][programs.JAX]) == 3
    task, init_fn, _ = programs.learned(splits, 4)
    epoch = jax.jit(programs.epoch_of(task, 100, last=False))
    start = programs.carry_of(init_fn(jax.random.key(0)))
    losses = [float(epoch(start, number, splits[0])[1]) for number in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_each_round_compiles_anew(monkeypatch):
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    found = steps.measure_compilation(2, ["optax.adam", "adam_abs"], 3)
    assert len(cleared) == 6
    assert set(found["lines"]) == set(found["seconds"]) == {"optax.adam", "adam_abs"}
    assert all(len(times) == 3 for times in found["seconds"].values())
    for make in steps.COMPILED.values():
        assert "func.func public @main" in steps.lowered_step(make(), 3).as_text()


@pytest.mark.parametrize(
    ("line", "kind", "count", "cell"),
    [
        ("step --optimizers sgd,adam_abs", "step", 2, "| adam_abs / optabs.adam |"),
        ("compile", "compile", 1, "| adam_abs | 2 |"),
        ("fit", "fit", 1, "| logistic | 400 |"),
        pytest.param("dao_e", DAO_E, 1, "| dao_e, paper |", marks=pytest.mark.slow),
        pytest.param("population", "population", 1, "| 64-4-10 | 2 |", marks=pytest.mark.slow),
    ],
)
def test_a_subject_writes_records_and_tables_and_goes_on_from_them(
    line, kind, count, cell, tmp_path, monkeypatch
):
    assert call(monkeypatch, f"timing {line} --quick --out {tmp_path}") == 0
    made = Records(tmp_path).select(kind=kind)
    assert len(made) == count
    assert cell in (tmp_path / "README.md").read_text()
    if kind == "fit":
        assert made[0].result["largest_difference"] < 1e-5  # both do the same work
        assert list(made[0].result["seconds"]) == [FIT, HAND]
    before = (tmp_path / FILE).read_bytes()
    assert call(monkeypatch, f"timing {line} --quick --out {tmp_path}") == 0
    assert (tmp_path / FILE).read_bytes() == before


def test_the_committed_records_give_the_committed_tables(tmp_path, monkeypatch):
    assert_reported("timing", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "subject is ''; choose from step, dao_e, compile, epoch, fit, population."),
        ("steps", "subject is 'steps'; choose from step"),
        ("step --sizes 1e4,nan", "sizes is 'nan'; choose from 1e4, 1e5, 1e6,"),
        ("dao_e --sizes vgg", "sizes is 'vgg'; choose from 1e6, 1.6e7, mlp, resnet18."),
        ("step --optimizers adagram", "optimizers is 'adagram'; choose from sgd"),
        ("step --state int4", "state is 'int4'; choose from float32, 8bit,"),
        ("epoch --data no/such", "call `make peers`."),  # said before anything is read
        ("fit --out pyproject.toml", "'pyproject.toml' cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(line, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(f"timing {line}", sentence, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("backend", "available", "device"),
    [("cpu", False, "cpu"), ("gpu", True, "cuda"), ("gpu", False, None), ("tpu", True, None)],
)
def test_torch_must_run_where_jax_runs(backend, available, device, monkeypatch):
    cuda = types.SimpleNamespace(is_available=lambda: available)
    torch = types.SimpleNamespace(set_num_threads=lambda count: None, cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    if device:
        assert programs.load_torch() == (torch, device)
    else:
        with pytest.raises(ArgumentError, match=f"JAX runs on '{backend}'"):
            programs.load_torch()
