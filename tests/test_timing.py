"""What the measurements of time measure; their results are no test's business."""

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
from benchmarks.lab import tasks, timing
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import FILE, Records
from benchmarks.lab.timing import tree_bytes
from benchmarks.lab.training import training_step
from benchmarks.timing import programs, pytorch, steps, tables
from benchmarks.timing.steps import ADAM, DAO_E, OPTAX, OURS


@pytest.mark.parametrize("name", [name for name in OPTAX if name != "nadam"])
def test_sides_of_one_rule_compute_the_same_updates(name):
    with jax.enable_x64(True):
        params, *draws = jax.random.normal(jax.random.key(0), (6, 3, 5), float)
        sides = [optax.with_extra_args_support(make[name]()) for make in (OURS, OPTAX)]
        states = [side.init(params) for side in sides]
        for grads in draws:
            both = [sides[i].update(grads, states[i], params) for i in (0, 1)]
            states = [state for _, state in both]
            np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_no_step_moves_more_bytes_than_optax_and_absolute_rules_have_no_root(name):
    (_, make), (rival, other) = list(steps.makers_of(name).items())[:2]
    assert rival == f"optax.{name.split('_abs')[0]}"
    ones = jnp.ones(4096)
    runners = [timing.runner_of(each(), jnp.zeros(4096), ones) for each in (make, other)]
    ours, theirs = (timing.cost_of(runner.compiled, 4096) for runner in runners)
    assert ours["bytes_accessed"] <= 1.02 * theirs["bytes_accessed"]
    assert (ours["roots"] == 0) == ("abs" in name or name in ("sgd", "momentum", "nag"))
    if name == "sgd":
        assert (ours["kernels"], ours["copies"]) == (1, 0)
        assert ours["bytes_accessed"] == pytest.approx(12, abs=0.5)
    assert ours["transcendentals"] >= (name == "adam")  # as the tables say of a CPU


def test_turns_rotate_end_after_the_budget_and_are_divided_round_by_round():
    seen = []
    clocks = {name: (lambda name=name: seen.append(name) or 1.0) for name in "abc"}
    results = timing.in_turns(clocks, rounds=9, seconds=1e-9)
    assert "".join(seen) == "abcbcacab"
    assert results == dict.fromkeys("abc", [1.0] * timing.FEWEST_ROUNDS)
    assert timing.ratio([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]).median == 2.0  # by rounds


@pytest.mark.slow
def test_the_networks_have_their_sizes():
    shapes = steps.shapes_of("resnet18")
    assert (len(shapes), sum(map(math.prod, shapes))) == (62, 11_173_962)
    kernels = [(3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 512, 512), (1, 1, 256, 512), (512, 10)]
    assert [shapes.count(kernel) for kernel in kernels] == [1, 4, 3, 1, 1]
    assert steps.shapes_of("1e5") == ((250, 400),)
    assert sum(map(math.prod, steps.shapes_of("mlp"))) == pytest.approx(1e6, rel=0.01)


def test_every_optimizer_and_storage_is_timed_and_adam_at_the_experts_rate():
    arguments = {
        name: getattr(each, "__annotations__", ()) for name, each in vars(optabs).items()
    }
    assert {name for name in arguments if "learning_rate" in arguments[name]} <= {*OURS, DAO_E}
    made, zeros = steps.contenders(), jnp.zeros((100, 100))
    kinds = ("bfloat16", "float32", "uniform", "paper")
    alone = ["sgd alone", "adam alone", "rmsprop alone", "lion alone"]
    mixtures = [DAO_E, *(f"{DAO_E}, {kind}" for kind in kinds)]
    assert list(made) == [*mixtures, steps.EQUAL, steps.STEERED, ADAM, *alone]
    states = [jax.eval_shape(make().init, zeros) for make in made.values()][:8]
    bytes_each = [round(tree_bytes(each) / 1e4) for each in states]
    assert bytes_each == [21, 25, 33, 16, 20, 17, 9, 8]
    grads = jnp.array([1.0, -2.0, 0.5])
    for side in (ADAM, "adam alone"):
        update, _ = made[side]().update(grads, made[side]().init(grads), grads)
        np.testing.assert_allclose(update, -1e-3 * jnp.sign(grads), rtol=1e-4)


def test_steps_take_a_loss_and_a_batch_and_training_takes_the_gradient():
    def update(grads, state, params=None, *, value, batch):
        # Whatever it takes has a share in the step.
        return -0.1 * value * jnp.var(batch.inputs) * (grads + 0.01 * params), state + 1

    def loss_fn(params, statistics, batch):
        return jnp.mean((batch.inputs @ params) ** 2), statistics

    extra, params = steps.extra_of("mlp"), jnp.full(784, 0.1)
    batch = extra["batch"]
    assert [part.shape for part in batch] == [(128, 784), (128,)]
    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)
    (extra["value"], _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch)
    trained, loss = training_step(loss_fn, optimizer)((params, {}, jnp.int32(0)), batch)
    np.testing.assert_allclose(loss, extra["value"], rtol=1e-5)
    runners = [timing.runner_of(optimizer, +params, grads, **extra) for _ in timing.MODES]
    for runner, mode in zip(runners, timing.MODES, strict=True):
        getattr(runner, mode)(1)
        chex.assert_trees_all_close(
            runner.carry, (trained[0], trained[2]), rtol=1e-5, atol=1e-7
        )
        getattr(runner, mode)(2)
    chex.assert_trees_all_close(runners[0].carry, runners[1].carry, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_resting_population_evolves_and_learns_nothing():
    def nothing(params, batch):
        return jnp.zeros([])

    train, validation, _ = tasks.image_splits("digits")
    _, init_fn, loss_fn = programs.learned(train, 4)
    resting = optabs.gadam(programs.RESTING, 4, 0.0)
    state = optabs.gadam(programs.ADAM, 4, 0.0).init(jax.random.key(0), init_fn)
    rested, _ = resting.learn(state, nothing)
    chex.assert_trees_all_equal(rested.units, state.units, strict=True)
    ended, evolution = resting.evolve(state, nothing, None, validation, fitness_fn=loss_fn)
    # Without mutation or learning every entry is one of the first population's.
    pairs = zip(jax.tree.leaves(ended.params), jax.tree.leaves(state.params), strict=True)
    assert all(bool((new[:, None] == old[None]).any(1).all()) for new, old in pairs)
    assert np.ptp(np.asarray(evolution.losses)) > 0


NARROW = ["optabs.adam_abs, 8bit", "optax.adam", "optabs.adam", "optabs.adam_abs"]
POPULATION = [*programs.LEARNING, programs.EVOLVE, programs.ITSELF]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "kept", "sides", "cell"),
    [
        ("step --optimizers adam_abs --state 8bit", "cost", NARROW, "8bit / optax.adam |"),
        ("compile", "lines", list(steps.COMPILED), "| adam_abs | 2 |"),
        ("epoch", "first_epoch", [programs.JAX], "| jax, optabs.adam | 64 |"),
        ("fit", "seconds", [programs.FIT, programs.HAND], "| logistic | 400 |"),
        ("dao_e", "cost", list(steps.contenders()), "| dao_e, paper |"),
        ("population", "seconds", POPULATION, "| 64-16-10 | 8 |"),
    ],
)
def test_a_subject_writes_records_and_tables_and_goes_on_from_them(
    line, kept, sides, cell, tmp_path, monkeypatch
):
    cleared, digits = [], tasks.image_splits("digits")
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    monkeypatch.setattr(tasks, "image_splits", lambda name, source=None: digits)
    for place, value in {
        "benchmarks.lab.timing.SHORTEST": 1e-4,
        "benchmarks.timing.steps.LEAVES": (2,),
        "benchmarks.timing.steps.SIZES": {"step": ["1e4"], "dao_e": ["16"]},
        "benchmarks.timing.programs.EPOCHS": {400: 2},
        "benchmarks.timing.programs.TORCH": {},
        "benchmarks.timing.programs.load_torch": list,
    }.items():
        monkeypatch.setattr(place, value)
    assert call(monkeypatch, f"timing {line} --quick --out {tmp_path}") == 0
    # After the record; and before each compilation that is timed.
    assert len(cleared) == (1 + len(steps.COMPILED) if line == "compile" else 1)
    (record,) = Records(tmp_path)
    found = record.result
    assert list(found[kept]) == sides
    assert cell in (tmp_path / "README.md").read_text()
    if line.startswith("step"):
        for mode in timing.MODES:
            assert [*found[mode]["seconds"]] == [*NARROW, steps.COPY]
        # A code for each entry of a moment and a range for each of 100 rows, or float32.
        for side, state in ((NARROW[0], 2 * (1 + 200 / 1e4)), (NARROW[3], 8)):
            assert tables.state_of(found, side) == pytest.approx(state, abs=0.01)
            assert found["must_move_bytes"][side] == pytest.approx(12 + 2 * state, abs=0.02)
    elif line == "epoch":
        assert 0.5 < found["first_epoch"][programs.JAX]["loss"] < np.log(10)
        assert 0.5 < found["first_epoch"][programs.JAX]["validation_accuracy"] <= 1
    elif line == "fit":
        assert found["largest_difference"] < 1e-5  # both do the same work
    elif line == "population":
        losses = found["loss"]
        assert found["steps"] == 2 * 21
        assert losses[programs.CHUNKS] == pytest.approx(losses[programs.VMAP], rel=1e-5)
        assert max(losses.values()) < np.log(10)
        np.testing.assert_allclose(list(losses.values()), losses[programs.FITS], rtol=0.1)
    before = (tmp_path / FILE).read_bytes()
    assert call(monkeypatch, f"timing {line} --quick --out {tmp_path}") == 0
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.slow
def test_a_step_of_pytorch_is_called_in_turns_where_it_is_installed(tmp_path, monkeypatch):
    made, steps_made = [], []

    class AdamW:
        def __init__(self, params, lr, fused):
            made.append(([leaf.grad for leaf in params], lr, fused))

        def step(self):
            steps_made.append(True)

    torch = types.SimpleNamespace(
        set_num_threads=lambda count: None,
        zeros=lambda shape, **_: types.SimpleNamespace(shape=shape),
        randn_like=lambda leaf: leaf.shape,
        optim=types.SimpleNamespace(AdamW=AdamW),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(timing, "SHORTEST", 1e-4)
    monkeypatch.setitem(steps.SIZES, "step", ["64"])
    line = f"timing step --optimizers adamw_abs --quick --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    (record,) = Records(tmp_path)
    found = record.result
    assert made == [([(8, 8)], steps.RATE, True)]
    assert steps_made
    assert pytorch.ADAMW in found["call"]["seconds"]
    assert pytorch.ADAMW not in found["loop"]["seconds"]  # it has none
    for side in (pytorch.ADAMW, "optax.adamw"):
        assert found["must_move_bytes"][side] == pytest.approx(28, abs=0.2)
    assert f"| adamw_abs / {pytorch.ADAMW} |" in (tmp_path / "README.md").read_text()


def test_the_largest_size_has_to_be_named(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(steps, "step_units", lambda sizes, *_: asked.append(sizes) or [])
    for sizes in ("", "--sizes 1e8,1e9"):
        assert call(monkeypatch, f"timing step {sizes} --out {tmp_path}") == 0
    assert asked == [[x for x in steps.SIZES["step"] if x != "1e9"], ["1e8", "1e9"]]


@pytest.mark.slow
def test_committed_records_give_the_committed_tables(tmp_path, monkeypatch):
    assert_reported("timing", tmp_path, monkeypatch)
    kept = Records(tmp_path / "gpu")
    for record in Records(tmp_path).select(kind=DAO_E):
        kept.add(record._replace(environment={"device": "gpu: x"}))
    shown = [f"{bar.measured} {bar.verdict}" for bar in tables.bars_of(kept)]
    assert shown[:3] == ["10.8 missed", "12.6 missed", "11.2 missed"]
    assert shown[3:] == ["2.77 met", "3.05 -", "17.3 met", "24.3 met"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "subject is ''; choose from step, dao_e, compile, epoch, fit, population."),
        ("steps --quick", "subject is 'steps'; choose from step"),
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


def test_torch_must_run_where_jax_runs(monkeypatch):
    cuda = types.SimpleNamespace()
    torch = types.SimpleNamespace(set_num_threads=lambda count: None, cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", torch)
    for backend, seen, device in (("cpu", False, "cpu"), ("gpu", True, "cuda")):
        cuda.is_available = lambda seen=seen: seen
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert programs.load_torch() == (torch, device)
    cuda.is_available = lambda: False
    with pytest.raises(ArgumentError, match="PyTorch sees no GPU"):
        programs.load_torch()
