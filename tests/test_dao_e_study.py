"""The DAO-E study: tasks, arms, settings, bars, its committed tables and its command."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_refused, assert_reported, call
from dao_e_problem import drawn

from benchmarks import dao_e
from benchmarks.dao_e import report, study
from benchmarks.dao_e.runs import Pair, Runs
from benchmarks.dao_e.study import ALWAYS, EXPERTS, LABELS, SETTINGS, TASKS, arm_on
from benchmarks.lab import report as lab_report
from benchmarks.lab import tasks
from benchmarks.lab.records import Key, Record, Records
from benchmarks.lab.training import Outcome


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")  # they take their time


@pytest.fixture
def drawn_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of MNIST and Fashion-MNIST, as small as the tasks make them."""
    images, read = jax.random.uniform(jax.random.key(0), (100, 14, 14, 1)), tasks.image_splits
    few = tasks.Split(images, jnp.arange(100) % 10)

    def drawn_or_read(name: str, *_: Any, **given: Any) -> Any:
        return read(name, **given) if name == "digits" else [few] * 3

    monkeypatch.setattr(tasks, "image_splits", drawn_or_read)


@pytest.mark.usefixtures("drawn_images")
@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_finite_loss_and_a_gradient_for_all_parameters(name: str) -> None:
    task = TASKS[name](pathlib.Path())
    shapes, statistics = jax.eval_shape(task.init, jax.random.key(0))
    params, statistics = drawn(shapes), jax.tree.map(lambda x: jnp.ones(x.shape), statistics)

    @jax.jit
    def look(train: Any, held_out: Any) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], task.feed(jax.random.key(1), 4))
        slope = jax.value_and_grad(task.loss_fn, has_aux=True)
        found = slope(params, statistics, task.batch(train, first))
        return found, task.evaluate(params, statistics, held_out)

    few = jax.tree.map(lambda leaf: leaf[:50], task.validation)
    ((loss, after), grads), scores = look(task.train, few)
    assert 0 < float(loss) < np.inf
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), statistics, after)
    assert any(jax.tree.leaves(moved)) == (name == "convnet")  # batch norm's
    grads = jax.device_get(grads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # Softmax ignores what attention's key bias adds to all scores of a query.
    dead = [path for path, leaf in jax.tree.leaves_with_path(grads) if not np.any(leaf)]
    assert all("key" in jax.tree_util.keystr(path) for path in dead)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= 1e5
    assert task.steps <= (10_000 if name == "long" else 2000)
    assert np.isfinite(scores[0])
    assert np.isfinite(scores[1]) == task.classifies
    assert (task.scope == "few") == (name in ("long", "transformer"))


def test_data_drift_as_they_say() -> None:
    task = {name: TASKS[name](None) for name in ("noisy_labels", "new_class", "brighter")}
    # As many places as would be drawn in a hundred steps.
    many = jax.tree.map(jnp.ravel, task["brighter"].feed(jax.random.key(3), 100))

    @functools.partial(jax.jit, static_argnums=0)
    def batch(name: str, progress: float) -> tasks.Split:
        now = many._replace(progress=jnp.asarray(progress))
        return task[name].batch(task[name].train, now)

    clean = batch("noisy_labels", 0.0).labels
    np.testing.assert_array_equal(batch("noisy_labels", 0.49).labels, clean)
    noisy = batch("noisy_labels", 0.5).labels
    np.testing.assert_allclose(np.mean(noisy != clean), 0.4 * 0.9, atol=0.03)
    assert study.NEW_CLASS not in batch("new_class", 0.49).labels
    share = np.mean(batch("new_class", 0.5).labels == study.NEW_CLASS)
    np.testing.assert_allclose(share, 0.1, atol=0.03)
    rise = batch("brighter", 0.5).inputs - batch("brighter", 0.0).inputs
    np.testing.assert_allclose(rise, 0.5, atol=1e-6)
    assert float(task["brighter"].validation.inputs.min()) == 1.0


def test_the_settings_are_those_of_the_study() -> None:
    best = {"sgd": 0.1, "adam": 0.01, "rmsprop": 0.01, "lion": 0.001}
    assert {name: list(study.rates_in(name, best).values()) for name in SETTINGS} == {
        "tuned": [0.1, 0.01, 0.01, 0.001],
        "same": [0.001] * 4,
        "SGD right": [0.1, 0.3, 0.3, 0.03],
        "Adam right": [3.0, 0.01, 0.3, 0.03],
        "small": [0.01, 0.001, 0.001, 0.0001],
    }


@pytest.mark.usefixtures("drawn_images")
def test_every_arm_builds_under_a_schedule_momentum_and_decay() -> None:
    plain = tasks.quadratic()._replace(steps=6)
    decay = TASKS["decay"](pathlib.Path())
    hard = plain._replace(schedule=decay.schedule, wrap=decay.wrap)
    params = plain.init(jax.random.key(0))[0]
    for arm in LABELS:
        rates = dict.fromkeys(study.rated_by(arm) or ("factor",), jnp.float32(0.1))
        task = plain if arm == "schedule_free_adamw" else hard
        optimizer = task.optimizer(arm_on("momentum", arm), rates)
        state = jax.eval_shape(optimizer.init, params)
        given = {"params": params, "value": 1.0, "batch": params["point"]}
        updates, _ = jax.eval_shape(
            functools.partial(optimizer.update, params, **given), state
        )
        assert updates["point"].shape == params["point"].shape, arm
    grads = jax.tree.map(jnp.ones_like, params)
    sgd = hard.optimizer(arm_on("momentum", "sgd"), {"sgd": 0.5})
    first, state = sgd.update(grads, sgd.init(params), params)
    second, _ = sgd.update(grads, state, params)
    half = (1 + np.cos(np.pi / 6)) / 2  # of the cosine, after one step of six
    shrunk = -1e-4 * params["point"]
    np.testing.assert_allclose(first["point"], -0.5 + shrunk, rtol=1e-5)
    np.testing.assert_allclose(second["point"], -0.5 * half * 1.9 + shrunk, rtol=1e-5)


Values = dict[str, tuple[float, float, bool]]  # by arm: area, accuracy, diverged


def invented(pairs: dict[Pair, Values], folder: pathlib.Path) -> Runs:
    """Runs of such areas, which are also the other losses, over two seeds."""
    records = Records(folder)
    config = {"classifies": True, "scope": "all"}
    for pair, values in pairs.items():
        for arm, (loss, accuracy, diverged) in values.items():
            for seed in range(2):
                result = dict.fromkeys(report.LOSSES, loss * (1 + seed / 10))
                result |= {"validation_accuracy": accuracy, "diverged": diverged and seed == 1}
                key = Key(pair.task, arm, pair.setting, seed=seed)
                records._lines[key] = Record(key, config, result, "", {})
    return Runs(records)


def with_ours(area: float = 0.9, accuracy: float = 0.91, diverged: bool = False) -> Values:
    return dict.fromkeys(ALWAYS, (1.0, 0.9, False)) | {"dao_e": (area, accuracy, diverged)}


A, B, C, D, E = (Pair("softmax", setting) for setting in SETTINGS)
ALL_DIVERGED = with_ours(diverged=True) | dict.fromkeys(EXPERTS, (1.0, 0.9, True))
GOOD_ADAM = with_ours() | {"adam": (1.0, 0.94, False)}


@pytest.mark.parametrize(
    ("cases", "missed", "against"),
    [
        ({A: with_ours(), B: with_ours()}, [], {}),
        ({pair: with_ours(1 + 0.1 * (pair == E)) for pair in (A, B, C, D, E)}, [], {0: [E]}),
        ({A: with_ours(1.1), B: with_ours()}, [0], {0: [A]}),
        ({A: GOOD_ADAM, B: with_ours()}, [1], {1: [A]}),  # the best single of each pair
        ({A: with_ours(accuracy=0.898), B: with_ours(accuracy=0.9)}, [2], {2: [A]}),
        ({A: with_ours(accuracy=0.89)}, [1, 2], {1: [A], 2: [A]}),
        ({A: with_ours(diverged=True), B: with_ours()}, [3], {3: [A]}),
        ({A: ALL_DIVERGED, B: with_ours()}, [], {}),
    ],
)
def test_the_bars(
    cases: dict[Pair, Values], missed: list[int], against: Any, tmp_path: pathlib.Path
) -> None:
    bars = report.bars_of(invented(cases, tmp_path), list(cases))
    assert [place for place, bar in enumerate(bars) if not bar.met] == missed
    assert {place: found for place, found in enumerate(bars.values()) if found} == against


def test_ratios_and_differences_are_paired_by_seed(tmp_path: pathlib.Path) -> None:
    cases = {A: with_ours(0.5, 0.9) | {"features": (1.0, 0.92, True)}}
    cases[B] = with_ours(2.0, 0.9) | {"features": (2.0, 0.9, False)}
    runs = invented(cases, tmp_path)
    assert report._ratio(runs, "uniform", "area", "dao_e", [A, B]) == "1.000 ± 0.000"
    (_, table) = report._ablations(runs, [A, B])
    (row,) = table.rows  # type: ignore[union-attr]
    assert row[1:4] == ["2.000 ± 0.000", "1.000 ± 0.000", "1.414 ± 0.000"]
    assert row[-2:] == ["1.00 ± 0.00", "1"]
    first, second = runs.results[A, "features"]
    first.update(area=1.0, validation_accuracy=0.9)  # type: ignore[attr-defined]
    second.update(area=1.2, validation_accuracy=0.94)  # type: ignore[attr-defined]
    cells = report.drift_table(runs, [A], "features").rows[0]
    logs = 100 * np.log([0.5, 0.55 / 1.2])
    assert cells[1] == f"{logs.mean():+.2f} ± {abs(logs[0] - logs[1]) / 2:.2f}"
    assert cells[4] == "-2.00 ± 2.00"
    runs.results[A, "dao_e"].append(dict.fromkeys(runs.results[A, "dao_e"][0], 1e9))
    runs.results[A, "features"].pop()  # an ablation has fewer seeds
    assert report._ratio(runs, "dao_e", "area", "features", [A]) == "2.000"
    cases = {A: with_ours(1.1, 0.92), B: with_ours(0.9, 0.9)}
    bars = report.bars_of(invented(cases, tmp_path), [A, B])
    assert [bar.measured for bar in bars] == ["50% of 2", "+1.00", "+1.00", "0 of 2"]


def test_the_committed_records_give_the_committed_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_reported("dao_e", tmp_path, monkeypatch)
    runs = Runs(Records(tmp_path))
    bars = report.bars_of(runs, runs.pairs("all", "few"))
    assert all(bar.met for bar in bars)


def test_a_quick_study_through_the_command_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"dao_e --quick --steps 4 --seeds 1 --out {tmp_path}"
    monkeypatch.setattr(dao_e, "GRID", dao_e.Grid(-4, -4))
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    assert len(kept) == len(EXPERTS) + len(ALWAYS) * len(SETTINGS) * 2
    for arm in ALWAYS:
        (run,) = kept.select(kind="run", arm=arm, setting="small")
        assert (run.config["test"], "test_loss" in run.result) == (False, False)
        (mean,) = kept.select(kind="mean", arm=arm, setting="small")
        assert ("multiplier" in mean.result["curves"]) == (arm in study.MIXTURES)
    assert "| DAO-E |" in (tmp_path / "README.md").read_text()

    monkeypatch.setattr(dao_e, "program_of", None)  # nothing is made again
    assert call(monkeypatch, line) == 0


def test_the_test_data_are_seen_by_finalists_with_final_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(task: Any, arm: Any, *, test: bool) -> Any:
        looks.append(test)
        scores = (0.5, 0.5)
        return lambda rates, seed: Outcome(np.ones(10), scores, scores if test else None, {})

    looks: list[bool] = []
    monkeypatch.setattr(dao_e, "program_of", program)
    records = Records(tmp_path)
    for name in EXPERTS:
        for task in ("quadratic", "brighter"):
            key = Key(task, name, kind="tuning")
            records._lines[key] = Record(key, {}, {"best": 0.1}, "", {})
    plan = dao_e.Plan(["quadratic"], ["features"], 5, steps=10)
    assert list(plan.wanted()) == [("quadratic", arm) for arm in (*ALWAYS, "features")]
    for arm, seen, seeds in (("adam", True, 5), ("features", False, dao_e.ABLATION_SEEDS)):
        for final in (False, True, False):
            own = plan._replace(final=final)
            dao_e.run_units([dao_e.unit_of(own, "quadratic", arm, records)], records)
        run, *others = records.select(kind="run", arm=arm, setting="same")
        assert ("test_loss" in run.result) is seen
        assert len(others) + 1 == seeds
    assert looks == [False, True, False]
    # Where data drift, the features train with all seeds, whether they are asked for or not.
    assert [*plan._replace(tasks=["brighter"], arms=[]).wanted()][-1] == (
        "brighter",
        "features",
    )
    unit = dao_e.unit_of(plan, "brighter", "features", records)
    assert len(unit.keys) == 5 * len(study.DRIFT_SETTINGS)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--tasks digits", "tasks is 'digits'; choose from quadratic, logistic"),
        ("--tasks mnist,long", "tasks has mnist, which need images; pass data, too"),
        ("--tasks mnist --data nowhere", "source 'nowhere' does not exist"),
        ("--arms muon", "arms is 'muon'; choose from sgd, adam"),
        ("--seeds 0", "seeds is 0; pass a whole number above 0"),
        ("--workers 0", "workers is 0; pass a whole number above 0"),
        ("--quick --steps -1", "steps is -1; pass a whole number above 0"),
        ("--out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    line: str, sentence: str, tmp_path: pathlib.Path, monkeypatch: Any, capsys: Any
) -> None:
    assert_refused(f"dao_e {line}", sentence, tmp_path, monkeypatch, capsys)
