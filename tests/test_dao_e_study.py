"""The DAO-E study: tasks, arms, settings, bars, its committed tables and its command."""

import collections
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_reported, call
from dao_e_problem import drawn

from benchmarks import dao_e
from benchmarks.dao_e import report, study
from benchmarks.dao_e.runs import BEST, HINDSIGHT, Pair, Runs
from benchmarks.dao_e.study import EXPERTS, LABELS, SETTINGS, TASKS
from benchmarks.lab import report as lab_report
from benchmarks.lab import tasks, training
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import Key, Record, Records
from benchmarks.lab.training import Outcome

# Parameters. A record names its task alone: another network is a task of another name.
SIZES = {
    "quadratic": 50, "logistic": 62, "softmax": 650, "autoencoder": 4744, "mnist": 6634,
    "fashion": 6634, "convnet": 1442, "decay": 6634, "momentum": 2410, "long": 2410,
    "transformer": 48_576, "cnn": 5178, "gpt": 1_035_456, "resnet8": 78_042,
    "noisy_labels": 2410, "new_class": 2410, "brighter": 2410,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """No pictures, which take their time, and drawn images in place of MNIST's."""
    images, read = jax.random.uniform(jax.random.key(0), (100, 14, 14, 3)), tasks.image_splits

    def drawn_or_read(name, *_, **given):
        few = tasks.Split(images[..., : 3 if name == "cifar10" else 1], jnp.arange(100) % 10)
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
    normed = name in ("convnet", "cnn", "resnet8")  # batch norm's
    assert any(jax.tree.leaves(moved)) == normed
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # Softmax ignores what attention's key bias adds to all scores of a query.
    dead = [path for path, leaf in jax.tree.leaves_with_path(grads) if not np.any(leaf)]
    assert all("key" in jax.tree_util.keystr(path) for path in dead)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == SIZES[name]
    assert task.steps <= (10_000 if name == "long" else 2000)
    assert task.steps % dao_e.POINTS == 0
    assert np.isfinite(scores).tolist() == [True, task.classifies]
    assert (task.scope == "few") == (name in ("long", "transformer"))
    assert (task.scope == "new") == (name in ("cnn", "gpt", "resnet8"))


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
    for arm in LABELS.keys() - study.RETIRED:
        rates = dict.fromkeys(study.rated_by(arm) or ("factor",), jnp.float32(0.1))
        rates |= {"decay": 0.1, "b2": jnp.float32(0.99)} if arm == study.NADAMW else {}
        task = plain if arm in study.UNSCHEDULED else hard
        optimizer = task.optimizer(study.arm_on("momentum", arm, task.steps), rates)
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


class Values(NamedTuple):
    """What an invented run gave."""

    loss: float = 1.0  # on test data; also every other loss
    area: float = 1.0
    accuracy: float = 0.9
    diverged: bool = False


def invented(pairs):
    """Such runs over two seeds, with Adam as the best single by other seeds."""
    records, config = [], {"classifies": True, "scope": "all"}
    for pair, values in pairs.items():
        for arm, (loss, area, accuracy, diverged) in values.items():
            names = (*report.VALIDATED, "test_loss", "best_test_loss")
            for seed in (0, 1):
                result = dict.fromkeys(names, loss * (1 + seed / 10)) | {"area": area}
                result |= dict.fromkeys(("validation_accuracy", "test_accuracy"), accuracy)
                result["diverged"] = diverged and seed == 1
                key = Key(pair.task, arm, pair.setting, seed=seed)
                records.append(Record(key, config, result, "", {}))
            if arm in EXPERTS:
                losses = {"validation_losses": [0.1, 0.3 - 0.1 * (arm == "adam")]}
                key = Key(pair.task, arm, pair.setting, "selection")
                records.append(Record(key, config, losses, "", {}))
    return Runs(records)


def ours(loss=0.9, area=0.5, accuracy=0.91, diverged=False, **others):
    """Values by arm."""
    own = {"dao_e": Values(loss, area, accuracy, diverged)}
    return dict.fromkeys((*EXPERTS, "nadamw"), Values()) | own | others


PAIRS = [Pair("softmax", setting) for setting in SETTINGS]
A, B, _, _, E = PAIRS
EVERYWHERE = dict.fromkeys(PAIRS, ours())


@pytest.mark.parametrize(
    ("cases", "missed"),
    [
        (EVERYWHERE, []),
        (EVERYWHERE | {A: ours(1.03)}, [4]),  # NadamW's where tuned
        (EVERYWHERE | {A: ours(1.04)}, [1, 4]),
        (EVERYWHERE | {A: ours(1.02), E: ours(1.01)}, [8]),
        (dict.fromkeys(PAIRS, ours(1.01)), [0, 5, 6, 7, 8]),
        (dict.fromkeys(PAIRS, ours(0.9, accuracy=0.899)), [2]),
        (EVERYWHERE | {B: ours(accuracy=0.87)}, []),
        (dict.fromkeys(PAIRS, ours(0.9, 0.61)), [3]),
        (EVERYWHERE | {A: ours(0.9, 2.0)}, [3]),
        (EVERYWHERE | {A: ours(diverged=True)}, [9]),
        (EVERYWHERE | {A: ours(diverged=True, adam=Values(diverged=True))}, []),
        # The best single was chosen on other seeds, whatever would have been best.
        (EVERYWHERE | {A: ours(sgd=Values(0.1, 0.1, 0.99))}, []),
        (EVERYWHERE | {A: ours(adam=Values(0.1))}, [0, 1]),
    ],
)
def test_the_bars(cases, missed):
    bars = report.bars_of(invented(cases), PAIRS)
    assert [place for place, bar in enumerate(bars) if not bar.met] == missed


def test_ratios_and_differences_are_paired_by_seed():
    cases = {A: ours(0.5, accuracy=0.9, features=Values(1.0, 1.0, 0.92, True))}
    cases |= {B: ours(2.0, 2.0, 0.92, features=Values(2.0, 4.0))}
    runs = invented(cases)
    bars = report.bars_of(runs, [A, B])
    assert [bar.measured for bar in bars] == [
        "1.000 ± 0.000", "0.500 ± 0.000", "1.00 ± 0.00", "1.000 ± 0.000",
        "0.500 ± 0.000", "2.000 ± 0.000", "0 of 2",
    ]  # fmt: skip
    # By setting, and all.
    (table,) = report._over_best(runs, [[A, B], []], "test_loss", "Test loss")
    assert table.rows[-1][0] == "NadamW"
    assert dict.fromkeys(table.rows[-1][1:]) == {"1.000 ± 0.000": None}
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["DAO-E"] == ["0.500 ± 0.000", "2.000 ± 0.000", "1.000 ± 0.000"]
    ((row,),) = [table.rows for table in report._ablations(runs, [A, B])[1:]]
    assert row[1:4] == ["2.000 ± 0.000", "2.000 ± 0.000", "2.000 ± 0.000"]
    assert row[-2:] == ["0.00 ± 0.00", "1"]
    runs.results[A, "dao_e"].append(dict.fromkeys(runs.results[A, "dao_e"][0], 1e9))
    runs.results[A, "features"].pop()  # an ablation has fewer seeds
    assert runs.means_of([A], "features", "dao_e", "final_loss") == [pytest.approx(2.0)]


def test_the_best_single_in_hindsight_is_that_of_the_measure():
    runs = invented({A: ours(sgd=Values(0.5), lion=Values(1.0, 0.4))})
    assert runs.best(A) == "adam"
    for measure, wanted in (("test_loss", 0.5), ("area", 0.4), ("test_accuracy", 0.9)):
        assert runs.values([A], HINDSIGHT, measure)[0, 0] == wanted
        assert runs.values([A], BEST, measure)[0, 0] == (0.9 if wanted == 0.9 else 1.0)


def test_nadamw_s_configuration_is_chosen_on_the_other_tasks():
    count = len(dao_e.CONFIGURATIONS)
    losses = {task: np.full((count, 2), 4.0) for task in ("a", "b", "c")}
    losses["a"][3] = 1.0
    losses["b"][5] = losses["c"][5] = [1.0, 5.0]  # a mean of 3
    chosen = [dao_e.configuration_for(task, losses) for task in ("a", "b", "c", "new")]
    assert chosen == [dao_e.CONFIGURATIONS[place] for place in (5, 3, 3, 3)]
    with pytest.raises(ArgumentError, match="none but 'a'"):
        dao_e.configuration_for("a", {"a": losses["a"]})
    rates = study.rates_in("Adam right", chosen[0])
    assert rates == chosen[0] | {"nadamw": pytest.approx(30 * chosen[0]["nadamw"], rel=1e-2)}
    assert study.rates_in("same", chosen[0]) == chosen[0] | {"nadamw": 1e-3}


def test_a_warmed_up_rate_rises_and_falls():
    rate = training.warmed_up(2.0, 200)
    np.testing.assert_allclose(
        [rate(at) for at in (0, 5, 10, 105, 200)], [0, 1, 2, 1, 0], atol=1e-6
    )


@pytest.mark.slow
def test_the_committed_records_give_the_committed_tables(tmp_path, monkeypatch):
    assert_reported("dao_e", tmp_path, monkeypatch)
    runs = Runs(Records(tmp_path))
    for config in runs.configs.values():
        for setting, rates in config["rates"].items():
            assert rates == study.rates_in(setting, config["rates"]["tuned"])


@pytest.mark.slow
def test_finalists_see_the_test_data_and_ablations_do_not(tmp_path, monkeypatch):
    def mostly_invented(task, arm, *, test):
        if arm.label == "DAO-E" and task.scope == "all":
            return training.program_of(task, arm, test=test)
        scores, curves = (0.5, 0.5), {"validation_loss": np.ones(4)}
        seen = scores if test else None
        return lambda rates, seed: Outcome(np.ones(4), scores, seen, curves, seen)

    line = (
        f"dao_e --tasks quadratic,brighter,autoencoder --arms dao_e,nadamw,no_cap,features "
        f"--seeds 3 --steps 4 --out {tmp_path}"
    )
    monkeypatch.setattr(dao_e, "program_of", mostly_invented)
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    # Where data drift, the features train with all seeds.
    for task, finalists, others, seeds, settings in (
        ("quadratic", ("dao_e", "nadamw"), ("no_cap", "features"), 2, 5),
        ("brighter", ("dao_e",), ("features",), 3, 2),
    ):
        arms = {*EXPERTS, *finalists, *others}
        assert {record.key.arm for record in kept.select(task=task)} == arms
        for arm in arms:
            found = kept.select(task=task, arm=arm)
            assert collections.Counter(each.key.kind for each in found) == collections.Counter(
                tuning=arm in EXPERTS or arm == "nadamw",
                selection=settings * (arm in EXPERTS),
                mean=settings * (arm not in others),
                run=settings * (seeds if arm in others else 3),
            )
            runs = kept.select(task=task, arm=arm, kind="run")
            for name in ("test_loss", "best_test_loss"):
                assert {name in run.result for run in runs} == {arm not in others}
    (mean,) = kept.select(kind="mean", task="quadratic", arm="dao_e", setting="small")
    held_out = {"validation_loss", "validation_accuracy"}
    assert mean.result["curves"].keys() == {"multiplier", "loss", *EXPERTS} | held_out
    text = (tmp_path / "README.md").read_text()
    for heading in ("## Bars", "## Each part taken away", "## Data that change"):
        assert heading in text
    monkeypatch.setattr(dao_e, "program_of", None)  # nothing is made again
    assert call(monkeypatch, line) == 0
