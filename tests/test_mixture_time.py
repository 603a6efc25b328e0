"""What the measurement of DAO-E's time measures; its results are no test's business."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks import arrays, mixture_report, mixture_time
from benchmarks.lab import timing
from benchmarks.lab.models import MLP
from benchmarks.lab.networks import network
from benchmarks.mixture_report import ADAM, DAO_E, Bar, bars_of, bars_table
from optabs.ensemble import experts
from tests.commands import assert_refused, call

EXPERTS = {"sgd alone", "adam alone", "rmsprop alone", "lion alone"}


def small_network():
    return network(lambda rngs: MLP((6, 4, 10), rngs=rngs))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 1e-4)


@pytest.fixture
def quick_variants(monkeypatch):
    """Two that compile in a second."""
    cheap = mixture_time.variants()[mixture_report.BASELINES[0]]
    chosen = dict.fromkeys((DAO_E, mixture_report.BASELINES[0]), cheap)
    monkeypatch.setattr(mixture_time, "variants", lambda: chosen)
    return list(chosen)


def test_every_storage_and_both_baselines_are_timed():
    made = mixture_time.variants()
    assert list(made) == [
        "dao_e",
        "dao_e, float32",
        "dao_e, int8",
        "dao_e, thinned",
        "dao_e, uniform",
        "dao_e, paper",
    ]
    params = jnp.zeros((100, 100))
    size = {name: timing.tree_bytes(make().init(params)) / 1e4 for name, make in made.items()}
    assert [round(size[name]) for name in made] == [24, 32, 20, 17, 16, 24]


def test_adam_has_the_rate_of_the_experts():
    params, grads = jnp.zeros(3), jnp.array([1.0, -2.0, 0.5])
    update, _ = mixture_time.adam().update(grads, mixture_time.adam().init(params), params)
    np.testing.assert_allclose(update, -experts.DEFAULT_RATE * jnp.sign(grads), rtol=1e-4)


def test_the_step_is_told_the_loss_and_the_batch():
    told = {}

    def update(grads, state, params=None, **extra):
        told.update(extra)
        return grads, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    feed = mixture_time.Feed([jnp.ones(2)], jnp.ones([]), mixture_time._batch((3,)))
    mixture_time._runner(spy, [jnp.zeros(2)], feed)
    assert set(told) == {"value", "batch"}
    inputs, labels = told["batch"]
    assert (inputs.shape, labels.shape) == ((128, 3), (128,))


@pytest.mark.slow
def test_measure_has_every_side(quick_variants):
    found = mixture_time.measure([(8,), (2, 4)], (3,), 2, 1.0)
    sides = {*quick_variants, ADAM, *EXPERTS}
    assert (found["parameters"], found["leaves"]) == (16, 2)
    assert set(found["cost"]) == set(found["state_bytes"]) == sides
    assert found["state_bytes"]["lion alone"] == pytest.approx(4, abs=1)
    assert found["must_move_bytes"][ADAM] == pytest.approx(28, abs=1)
    for mode in timing.MODES:
        times = found[mode]["seconds"]
        assert set(times) == sides
        assert all(len(rounds) == 2 for rounds in times.values())
        together = np.sum([times[name] for name in EXPERTS], axis=0)
        for side in quick_variants:
            ratio = np.divide(times[side], together)
            assert found[mode]["over_experts"][side]["median"] == pytest.approx(
                np.median(ratio)
            )
            over_adam = np.divide(times[side], times[ADAM])
            assert found[mode]["over_adam"][side]["median"] == pytest.approx(
                np.median(over_adam)
            )


@pytest.mark.slow
def test_a_training_step_is_the_gradient_and_the_update():
    net, batch = small_network(), mixture_time._batch((6,))
    inputs, labels = batch
    graph = nnx.graphdef(MLP((6, 4, 10), rngs=nnx.Rngs(0)))

    def update(grads, state, params=None, *, value, batch):
        # Whatever it is told has a share in the step.
        factor = -0.1 * value * jnp.var(batch[0])
        return jax.tree.map(lambda g, p: factor * (g + 0.01 * p), grads, params), state + 1

    optimizer = optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)
    start, statistics = net.init(jax.random.key(0))
    carry = start, statistics, optimizer.init(start)
    step = jax.jit(mixture_time.training_step(net, optimizer))
    for _ in range(3):
        carry = step(carry, batch)

    def loss_fn(params):
        logits = nnx.merge(graph, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params = start
    for _ in range(3):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, _ = update(grads, 0, params, value=loss, batch=batch)
        params = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry[0], params
    )
    assert carry[2] == 3


@pytest.mark.usefixtures("quick_variants")
@pytest.mark.slow
def test_the_share_is_of_a_training_step():
    training = mixture_time.Training(small_network, (6,))
    found = mixture_time.measure_training(training, 3, 1.0)
    times = found["seconds"]
    assert set(times) == {DAO_E, ADAM, f"training, {DAO_E}", f"training, {ADAM}"}
    for side in (DAO_E, ADAM):
        share = np.median(np.divide(times[side], times[f"training, {side}"]))
        assert found["share"][side]["median"] == pytest.approx(share)
    over = np.divide(times[f"training, {DAO_E}"], times[f"training, {ADAM}"])
    assert found["over_adam"]["median"] == pytest.approx(np.median(over))


def test_the_networks_are_those_of_the_sizes():
    for size, training in mixture_time.TRAININGS.items():
        params, _ = jax.eval_shape(training.network().init, jax.random.key(0))
        shapes = sorted(leaf.shape for leaf in jax.tree.leaves(params))
        assert shapes == sorted(arrays.TREES[size]())
    assert sum(map(math.prod, arrays.mlp_shapes())) == pytest.approx(1e6, rel=0.01)


def found_at(parameters, ratio, state_bytes, share=None):
    """Results as `measure` gives them, with one variant and a baseline."""
    spread = {"median": ratio, "low": ratio, "high": ratio}
    sides = {DAO_E: spread, mixture_report.BASELINES[0]: spread}
    found = {
        "parameters": parameters,
        "state_bytes": dict.fromkeys(sides, state_bytes),
        "call": {"over_adam": sides},
    }
    if share is not None:
        found["training"] = {
            "share": {DAO_E: {"median": share}},
            "over_adam": {"median": 10 * share},
        }
    return found


def test_bars_are_taken_where_they_were_set():
    results = {
        "1e4": found_at(1e4, 9.0, 24.3),
        "1e8": found_at(1e8, 1.9, 24.0),
        arrays.MLP: found_at(1e6, 5.0, 24.1, share=0.17),
        arrays.RESNET: found_at(1.1e7, 3.0, 24.2, share=0.06),
    }
    leaf, share, mlp, state = bars_of(results)
    assert leaf.measured == {DAO_E: 1.9}
    assert share.measured == {DAO_E: pytest.approx(6.0)}
    assert mlp.measured == {DAO_E: pytest.approx(1.7)}
    assert state.measured == {DAO_E: 24.0}
    assert [bar.device for bar in (leaf, share, mlp, state)] == ["gpu", "gpu", "cpu", None]
    (row,) = bars_table(bars_of(results), "gpu").rows
    assert row == [
        DAO_E,
        "1.9, reached",
        "6, not reached",
        "1.7 (for a cpu)",
        "24, not reached",
    ]
    (row,) = bars_table(bars_of(results), "cpu").rows
    assert row[1:4] == ["1.9 (for a gpu)", "6 (for a gpu)", "1.7, reached"]


def test_what_was_not_measured_reaches_no_bar():
    (row,) = bars_table(bars_of({"16": found_at(16, 1.0, 20.0)}), "cpu").rows
    assert row == [DAO_E, "1 (for a gpu)", "-", "-", "20, reached"]


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(19.99, "20, reached"), (20.02, "20, reached"), (20.06, "20.1, not reached")],
)
def test_a_bar_is_met_by_the_number_that_is_shown(measured, verdict):
    (row,) = bars_table([Bar("bytes", 20.0, {DAO_E: measured})], "cpu").rows
    assert row == [DAO_E, verdict]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_variants")
def test_command_writes_records_tables_and_figure(tmp_path, monkeypatch):
    training = mixture_time.Training(small_network, (6,))
    monkeypatch.setitem(mixture_time.TRAININGS, arrays.MLP, training)
    monkeypatch.setitem(arrays.TREES, arrays.MLP, lambda: [(6, 4), (4,)])
    options = f"--optimizer dao_e --sizes 16,mlp --rounds 2 --out {tmp_path}"
    assert call(monkeypatch, f"step_time {options}") == 0
    record = json.loads((tmp_path / "runs" / "mlp-dao_e.json").read_text())
    assert set(record) == {"config", "results", "environment"}
    assert record["results"]["parameters"] == 28
    assert set(record["results"]["training"]["share"]) == {DAO_E, ADAM}
    assert "training" not in json.loads((tmp_path / "runs" / "16-dao_e.json").read_text())
    text = (tmp_path / "dao_e.md").read_text()
    assert "the sum of its experts' own, inside a compiled loop" in text
    assert text.startswith("**Bars, on a ")
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"dao_e{suffix}").stat().st_size > 1000
    assert not (tmp_path / "step_time.md").exists()


def test_an_unknown_size_is_one_sentence(tmp_path, monkeypatch, capsys):
    sentence = (
        "sizes is 'vgg'; pass whole numbers above 0 such as 1.6e7, or resnet18 or mlp, "
        "separated by commas."
    )
    line = "step_time --optimizer dao_e --sizes vgg"
    assert_refused(line, sentence, tmp_path, monkeypatch, capsys)
