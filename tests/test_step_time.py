"""What the measurements of time measure; their results are no test's business."""

import inspect
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import typer
from typer.testing import CliRunner

import optabs
from benchmarks import arrays, epoch_time, mixture_time, store, torch_peer
from benchmarks.contests import CONTESTS, RATE, contests_of
from benchmarks.lab import timing
from benchmarks.lab.arguments import ArgumentError
from benchmarks.step_time import MODES, TORCH, measure, step_time


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 1e-4)


def run(command, *arguments):
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, arguments)


def cost(optimizer, shape=(64,)):
    carry = (jnp.zeros(shape), optimizer.init(jnp.zeros(shape)))
    runner = timing.Runner(timing.step_of(optimizer), carry, jnp.ones(shape))
    return timing.cost_of(runner.step, math.prod(shape))


def test_every_named_optimizer_is_timed():
    named = {
        name
        for name, value in vars(optabs).items()
        if callable(value) and "learning_rate" in inspect.signature(value).parameters
    }
    assert named <= {*CONTESTS, mixture_time.DAO_E}


@pytest.mark.parametrize("name", [name for name in CONTESTS if CONTESTS[name].same_rule])
def test_sides_of_one_rule_compute_the_same_updates(name):
    contest = CONTESTS[name]
    with jax.enable_x64(True):
        params = jax.random.normal(jax.random.key(0), (3, 5), float)
        sides = [
            optax.with_extra_args_support(make())
            for make in (contest.ours, next(iter(contest.rivals.values())))
        ]
        states = [side.init(params) for side in sides]
        for key in jax.random.split(jax.random.key(1), 5):
            grads = jax.random.normal(key, params.shape, float)
            updates = [None, None]
            for index, side in enumerate(sides):
                updates[index], states[index] = side.update(grads, states[index], params)
            np.testing.assert_allclose(*updates, rtol=1e-5)


@pytest.mark.parametrize("name", CONTESTS)
def test_absolute_rules_have_no_root(name):
    rooted = "abs" not in name and name not in ("sgd", "momentum", "nag")
    assert (cost(CONTESTS[name].ours()).roots > 0) == rooted


@pytest.mark.parametrize("name", CONTESTS)
def test_no_step_moves_more_bytes_than_optax(name):
    contest = CONTESTS[name]
    ours, theirs = (
        cost(make(), (4096,)).bytes_accessed
        for make in (contest.ours, next(iter(contest.rivals.values())))
    )
    assert ours <= 1.02 * theirs


def test_cost_counts_passes_over_arrays():
    sgd = cost(optabs.sgd(1e-3))
    assert (sgd.kernels, sgd.copies, sgd.roots) == (1, 0, 0)
    assert sgd.bytes_accessed == pytest.approx(12, abs=0.5)
    root = cost(optabs.adam(1e-3)).transcendentals
    assert (root >= 1) == timing.roots_are_transcendental()


def test_loop_does_what_calls_do():
    optimizer = optabs.adam(0.1)
    grads = jnp.array([1.0, -2.0])
    runners = []
    for _ in range(2):
        carry = (jnp.zeros(2), optimizer.init(jnp.zeros(2)))
        runners.append(timing.Runner(timing.step_of(optimizer), carry, grads))
    runners[0].call(3)
    runners[1].inside(3)
    jax.tree.map(np.testing.assert_allclose, runners[0].carry, runners[1].carry)


def test_turns_rotate_and_end_after_the_budget():
    seen = []
    clocks = {name: (lambda name=name: seen.append(name) or 1.0) for name in "abc"}
    results = timing.in_turns(clocks, rounds=9, seconds=1e-9)
    assert "".join(seen) == "abcbcacab"
    assert results == dict.fromkeys("abc", [1.0] * timing.FEWEST_ROUNDS)


def test_ratio_is_taken_round_by_round():
    assert timing.ratio([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]).median == 2.0


def test_resnet18_is_the_one_for_small_images():
    shapes = arrays.resnet18_shapes()
    assert (len(shapes), sum(map(math.prod, shapes))) == (62, 11_173_962)


def test_measure_has_every_side():
    found = measure(CONTESTS["adam_abs"], "adam_abs", [(8,), (2, 4)], 2, 1.0)
    sides = {"optabs.adam_abs", "optax.adam", "optabs.adam"}
    assert (found["parameters"], found["leaves"]) == (16, 2)
    assert set(found["cost"]) == sides
    assert found["must_move_bytes"]["optabs.adam_abs"] == pytest.approx(28, abs=1)
    for mode in MODES:
        assert set(found[mode]["ratio"]) == {"optax.adam", "optabs.adam"}
        assert set(found[mode]["seconds"]) == sides | {"copy"}
        assert all(len(times) == 2 for times in found[mode]["seconds"].values())


def test_narrow_states_are_timed_against_float32():
    name = "adam_abs_8bit"
    found = measure(contests_of("8bit")[name], name, [(64, 128)], 2, 1.0)
    moved = found["must_move_bytes"]
    # Gradients are read, parameters and state read and written; a range for 64 entries.
    assert moved[f"optabs.{name}"] == pytest.approx(4 + 2 * (4 + 2 * (1 + 2 / 64)), abs=0.01)
    assert moved["optabs.adam_abs"] == pytest.approx(4 + 2 * 12, abs=0.01)
    assert set(found["call"]["ratio"]) == {"optax.adam", "optabs.adam", "optabs.adam_abs"}


def test_gradients_may_have_fewer_bits() -> None:
    contest = CONTESTS["adam_abs"]
    found = measure(contest, "adam_abs", [(64,)], 2, 1.0, gradients="bfloat16")
    assert found["must_move_bytes"]["optabs.adam_abs"] == pytest.approx(2 + 2 * 12, abs=0.5)


def test_torch_is_a_rival_where_it_is_asked_for(monkeypatch):
    steps = []
    tensor = types.SimpleNamespace(grad=None)
    optimizer = types.SimpleNamespace(step=lambda: steps.append(tensor.grad))
    asked = {}

    def adamw(params, **options):
        asked.update(options, params=len(params))
        return optimizer

    torch = types.SimpleNamespace(
        zeros=lambda shape, **options: tensor,
        randn=lambda shape, **options: shape,
        set_num_threads=lambda count: None,
        optim=types.SimpleNamespace(AdamW=adamw),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    found = measure(CONTESTS["adam_abs"], "adam_abs", [(64,)], 2, 1.0, torch="cpu")
    for mode in MODES:
        assert TORCH in found[mode]["ratio"]
        assert len(found[mode]["seconds"][TORCH]) == 2
    assert asked == {"lr": RATE, "fused": True, "params": 1}
    assert set(steps) == {(64,)}
    assert TORCH not in found["cost"]


def test_command_writes_records_tables_and_figure(tmp_path):
    options = ["--sizes", "16,1e2", "--optimizers", "sgd,adam_abs", "--rounds", "2"]
    result = run(step_time, *options, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "runs" / "1e2-adam_abs.json").read_text())
    assert set(record) == {"config", "results", "environment"}
    assert record["results"]["parameters"] == 100
    text = (tmp_path / "step_time.md").read_text()
    assert "adam_abs / optabs.adam" in text
    assert "square root as transcendental" in text
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"step_time{suffix}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sizes", "0"], "sizes is '0'; pass whole numbers above 0"),
        (["--sizes", "1e4,nan"], "sizes is '1e4,nan'; pass whole numbers above 0"),
        (["--sizes", "inf"], "sizes is 'inf'; pass whole numbers above 0"),
        (["--sizes", "1.5"], "sizes is '1.5'; pass whole numbers above 0"),
        (["--sizes", "vgg"], "sizes is 'vgg'; pass whole numbers above 0"),
        (["--optimizers", "adagram"], "optimizers is 'adagram'; choose from sgd"),
        (["--state", "int4"], "state is 'int4'; choose from float32, 8bit,"),
        (["--gradients", "int8"], "gradients is 'int8'; choose from float32, bfloat16."),
        (["--gradients", "bfloat16", "--torch"], "gradients is 'bfloat16', but PyTorch's"),
        (["--rounds", "0"], "rounds is 0; pass a whole number above 0."),
        (["--seconds", "nan"], "seconds is nan; pass a number above 0."),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, tmp_path):
    result = run(step_time, *options, "--out", str(tmp_path / "new"))
    assert isinstance(result.exception, ArgumentError)
    assert sentence in str(result.exception)
    assert not (tmp_path / "new").exists()


def test_a_file_as_output_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    result = run(step_time, "--sizes", "8", "--out", str(tmp_path / "file"))
    assert isinstance(result.exception, store.StoreError)
    assert "cannot be written" in str(result.exception)


def test_missing_torch_is_said_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run(
        epoch_time.epoch_time, "--data", str(tmp_path / "none"), "--out", str(tmp_path)
    )
    assert isinstance(result.exception, ArgumentError)
    assert str(result.exception).endswith("call `make peers`.")


def test_step_time_says_that_torch_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run(step_time, "--torch", "--out", str(tmp_path / "new"))
    assert isinstance(result.exception, ArgumentError)
    assert str(result.exception).endswith("call `make peers`.")
    assert not (tmp_path / "new").exists()


def test_torch_must_run_where_jax_runs():
    with pytest.raises(ArgumentError, match="JAX runs on 'tpu'"):
        torch_peer.device_like("tpu")


def test_unknown_variant_of_torch_is_refused(tmp_path):
    result = run(epoch_time.epoch_time, "--variants", "slow", "--out", str(tmp_path / "new"))
    assert isinstance(result.exception, ArgumentError)
    assert str(result.exception) == "variants is 'slow'; choose from plain, foreach, fused."
