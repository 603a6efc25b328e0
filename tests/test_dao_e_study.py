"""The DAO-E study: tasks, arms, settings, bars, its committed tables and its command."""

import collections
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_reported, call
from dao_e_problem import drawn

from benchmarks import dao_e
from benchmarks.dao_e import report, study
from benchmarks.dao_e.runs import Pair, Runs
from benchmarks.dao_e.study import ALWAYS, EXPERTS, LABELS, SETTINGS, TASKS
from benchmarks.lab import report as lab_report
from benchmarks.lab import tasks, training
from benchmarks.lab.records import Key, Record, Records
from benchmarks.lab.training import Outcome


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """No pictures, which take their time, and drawn images in place of MNIST's."""
    images, read = jax.random.uniform(jax.random.key(0), (100, 14, 14, 1)), tasks.image_splits
    few = tasks.Split(images, jnp.arange(100) % 10)

    def drawn_or_read(name, *_, **given):
        return read(name, **given) if name == "digits" else [few] * 3

    monkeypatch.setattr(tasks, "image_splits", drawn_or_read)
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_finite_loss_and_a_gradient_for_all_parameters(name):
    task = TASKS[name](pathlib.Path())
    shapes, statistics = jax.eval_shape(task.init, jax.random.key(0))
    params, statistics = drawn(shapes), jax.tree.map(lambda x: jnp.ones(x.shape), statistics)

    @jax.jit
    def look(train, held_out):
        first = jax.tree.map(lambda leaf: leaf[0], task.feed(jax.random.key(1), 4))
        slope = jax.value_and_grad(task.loss_fn, has_aux=True)
        found = slope(params, statistics, task.batch(train, first))
        return found, task.evaluate(params, statistics, held_out)

    few = jax.tree.map(lambda leaf: leaf[:50], task.validation)
    ((loss, after), grads), scores = jax.device_get(look(task.train, few))
    assert 0 < float(loss) < np.inf
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), statistics, after)
    assert any(jax.tree.leaves(moved)) == (name == "convnet")  # batch norm's
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # Softmax ignores what attention's key bias adds to all scores of a query.
    dead = [path for path, leaf in jax.tree.leaves_with_path(grads) if not np.any(leaf)]
    assert all("key" in jax.tree_util.keystr(path) for path in dead)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= 1e5
    assert task.steps <= (10_000 if name == "long" else 2000)
    assert np.isfinite(scores).tolist() == [True, task.classifies]
    assert (task.scope == "few") == (name in ("long", "transformer"))


@pytest.mark.slow
def test_data_drift_as_they_say():
    task = {name: TASKS[name](None) for name in ("noisy_labels", "new_class", "brighter")}
    # As many places as would be drawn in a hundred steps.
    many = jax.tree.map(jnp.ravel, task["brighter"].feed(jax.random.key(3), 100))

    @functools.partial(jax.jit, static_argnums=0)
    def batch(name, progress):
        return task[name].batch(task[name].train, many._replace(progress=progress))

    clean, noisy = (batch("noisy_labels", at).labels for at in (0.49, 0.5))
    np.testing.assert_array_equal(batch("noisy_labels", 0.0).labels, clean)
    np.testing.assert_allclose(np.mean(noisy != clean), 0.4 * 0.9, atol=0.03)
    for at, share, near in ((0.49, 0.0, 0.0), (0.5, 0.1, 0.03)):
        found = np.mean(batch("new_class", at).labels == study.NEW_CLASS)
        np.testing.assert_allclose(found, share, atol=near)
    rise = batch("brighter", 0.5).inputs - batch("brighter", 0.0).inputs
    np.testing.assert_allclose(rise, 0.5, atol=1e-6)
    assert float(task["brighter"].validation.inputs.min()) == 1.0


@pytest.mark.slow
def test_every_arm_builds_under_a_schedule_momentum_and_decay():
    plain, decay = tasks.quadratic()._replace(steps=6), TASKS["decay"](pathlib.Path())
    hard = plain._replace(schedule=decay.schedule, wrap=decay.wrap)
    params = plain.init(jax.random.key(0))[0]
    given = {"params": params, "value": 1.0, "batch": params["point"]}
    for arm in LABELS:
        rates = dict.fromkeys(study.rated_by(arm) or ("factor",), jnp.float32(0.1))
        task = plain if arm == "schedule_free_adamw" else hard
        optimizer = task.optimizer(study.arm_on("momentum", arm), rates)
        update = functools.partial(optimizer.update, params, **given)
        updates, _ = jax.eval_shape(update, jax.eval_shape(optimizer.init, params))
        assert updates["point"].shape == params["point"].shape, arm
    sgd = hard.optimizer(study.arm_on("momentum", "sgd"), {"sgd": 0.5})
    ones, state = jax.tree.map(jnp.ones_like, params), sgd.init(params)
    half = (1 + np.cos(np.pi / 6)) / 2  # of the cosine, after one step of six
    for length in (0.5, 0.5 * half * 1.9):
        updates, state = sgd.update(ones, state, params)
        wanted = -length - 1e-4 * params["point"]
        np.testing.assert_allclose(updates["point"], wanted, rtol=1e-5)


def invented(pairs):
    """Runs of such areas, which are also the other losses, over two seeds."""
    records, config = [], {"classifies": True, "scope": "all"}
    for pair, values in pairs.items():
        for (arm, (loss, accuracy, diverged)), seed in itertools.product(
            values.items(), (0, 1)
        ):
            result = dict.fromkeys(report.LOSSES, loss * (1 + seed / 10))
            result |= {"validation_accuracy": accuracy, "diverged": diverged and seed == 1}
            key = Key(pair.task, arm, pair.setting, seed=seed)
            records.append(Record(key, config, result, "", {}))
    return Runs(records)


def ours(area=0.9, accuracy=0.91, diverged=False, **others):
    """Values by arm: area, accuracy, diverged."""
    always = dict.fromkeys(ALWAYS, (1.0, 0.9, False))
    return always | {"dao_e": (area, accuracy, diverged)} | others


A, B, C, D, E = (Pair("softmax", setting) for setting in SETTINGS)
BROKEN = dict.fromkeys(EXPERTS, (1.0, 0.9, True))


@pytest.mark.parametrize(
    ("cases", "missed", "against"),
    [
        ({A: ours(), B: ours()}, [], {}),
        ({pair: ours(1 + 0.1 * (pair == E)) for pair in (A, B, C, D, E)}, [], {0: [E]}),
        ({A: ours(1.1), B: ours()}, [0], {0: [A]}),
        # The best single is that of each pair.
        ({A: ours(adam=(1.0, 0.94, False)), B: ours()}, [1], {1: [A]}),
        ({A: ours(accuracy=0.898), B: ours(accuracy=0.9)}, [2], {2: [A]}),
        ({A: ours(accuracy=0.89)}, [1, 2], {1: [A], 2: [A]}),
        ({A: ours(diverged=True), B: ours()}, [3], {3: [A]}),
        ({A: ours(diverged=True, **BROKEN), B: ours()}, [], {}),
    ],
)
def test_the_bars(cases, missed, against):
    bars = report.bars_of(invented(cases), list(cases))
    assert [place for place, bar in enumerate(bars) if not bar.met] == missed
    assert {place: found for place, found in enumerate(bars.values()) if found} == against


def test_ratios_and_differences_are_paired_by_seed():
    bars = report.bars_of(invented({A: ours(1.1, 0.92), B: ours(0.9, 0.9)}), [A, B])
    assert [bar.measured for bar in bars] == ["50% of 2", "+1.00", "+1.00", "0 of 2"]
    cases = {A: ours(0.5, 0.9, features=(1.0, 0.92, True))}
    runs = invented(cases | {B: ours(2.0, 0.9, features=(2.0, 0.9, False))})
    assert report._ratio(runs, "uniform", "area", "dao_e", [A, B]) == "1.000 ± 0.000"
    ((row,),) = [table.rows for table in report._ablations(runs, [A, B])[1:]]
    assert row[1:4] == ["2.000 ± 0.000", "1.000 ± 0.000", "1.414 ± 0.000"]
    assert row[-2:] == ["1.00 ± 0.00", "1"]
    runs.results[A, "dao_e"].append(dict.fromkeys(runs.results[A, "dao_e"][0], 1e9))
    runs.results[A, "features"].pop()  # an ablation has fewer seeds
    assert report._ratio(runs, "dao_e", "area", "features", [A]) == "2.000"


@pytest.mark.slow
def test_the_committed_records_give_the_committed_tables(tmp_path, monkeypatch):
    assert_reported("dao_e", tmp_path, monkeypatch)
    runs = Runs(Records(tmp_path))
    assert all(bar.met for bar in report.bars_of(runs, runs.pairs("all", "few")))
    for config in runs.configs.values():
        for setting, rates in config["rates"].items():
            assert rates == study.rates_in(setting, config["rates"]["tuned"])


@pytest.mark.slow
def test_finalists_see_the_test_data_and_ablations_do_not(tmp_path, monkeypatch):
    def mostly_invented(task, arm, *, test):
        if arm.label == "DAO-E" and task.scope == "all":
            return training.program_of(task, arm, test=test)
        scores = (0.5, 0.5)
        return lambda rates, seed: Outcome(np.ones(4), scores, scores if test else None, {})

    line = (
        f"dao_e --tasks quadratic,brighter --arms no_cap --seeds 3 --steps 4 --out {tmp_path}"
    )
    monkeypatch.setattr(dao_e, "program_of", mostly_invented)
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    # Where data drift, the features train with all seeds, whether they are asked for or not.
    for task, last, seeds, settings in (
        ("quadratic", "no_cap", 2, 5), ("brighter", "features", 3, 2)
    ):  # fmt: skip
        assert {record.key.arm for record in kept.select(task=task)} == {*ALWAYS, last}
        for arm in (*ALWAYS, last):
            found = kept.select(task=task, arm=arm)
            assert collections.Counter(each.key.kind for each in found) == collections.Counter(
                tuning=arm in EXPERTS,
                mean=settings * (arm != last),
                run=settings * (seeds if arm == last else 3),
            )
            runs = kept.select(task=task, arm=arm, kind="run")
            assert {"test_loss" in run.result for run in runs} == {arm != last}
    (mean,) = kept.select(kind="mean", task="quadratic", arm="dao_e", setting="small")
    assert mean.result["curves"].keys() == {"multiplier", "loss", *EXPERTS}
    assert "| DAO-E |" in (tmp_path / "README.md").read_text()
    monkeypatch.setattr(dao_e, "program_of", None)  # nothing is made again
    assert call(monkeypatch, line) == 0
