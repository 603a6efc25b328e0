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
from benchmarks.dao_e.study import ABLATIONS, EXPERTS, LABELS, SETTINGS, TASKS, arm_on
from benchmarks.lab import report as lab_report
from benchmarks.lab import tasks
from benchmarks.lab.paired import Pair, Runs
from benchmarks.lab.records import Key, Record, Records
from benchmarks.lab.training import Outcome, cosine

EMBEDDED = [name for name in TASKS if name not in study.NEED_IMAGES]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")  # they take their time


@pytest.fixture
def drawn_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of MNIST and Fashion-MNIST, as small as the tasks make them."""
    images = jax.random.uniform(jax.random.key(0), (300, 14, 14, 1))
    labels = jnp.arange(300) % 10
    parts = [tasks.Split(images[at : at + 100], labels[at : at + 100]) for at in (0, 100, 200)]
    monkeypatch.setattr(tasks, "image_splits", lambda *_, **__: parts)


@pytest.mark.usefixtures("drawn_images")
@pytest.mark.parametrize("name", study.NEED_IMAGES)
def test_images_become_a_task(name: str) -> None:
    check_task(name, pathlib.Path())


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_task_has_a_finite_loss_and_a_gradient_for_all_parameters(name: str) -> None:
    check_task(name, None)


def check_task(name: str, source: pathlib.Path | None) -> None:
    task = TASKS[name](source)
    shapes, statistics = jax.eval_shape(task.init, jax.random.key(0))
    params, statistics = drawn(shapes), jax.tree.map(lambda x: jnp.ones(x.shape), statistics)

    @jax.jit
    def look(train: Any, held_out: Any) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], task.feed(jax.random.key(1), 4))
        slope = jax.value_and_grad(task.loss_fn, has_aux=True)
        found = slope(params, statistics, task.batch(train, first))
        return found, task.evaluate(params, statistics, held_out)

    ((loss, after), grads), scores = look(
        task.train, jax.tree.map(lambda leaf: leaf[:50], task.validation)
    )
    assert 0 < float(loss) < np.inf
    jax.tree.map(lambda old, new: None, statistics, after)  # of one structure
    if name == "convnet":  # batch norm's
        pairs = zip(jax.tree.leaves(statistics), jax.tree.leaves(after), strict=True)
        assert not all(np.array_equal(*pair) for pair in pairs)
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


def test_every_arm_builds_under_every_kind_of_task() -> None:
    plain = tasks.quadratic()._replace(steps=6)
    hard = plain._replace(schedule=cosine, wrap=study._decayed)
    params = plain.init(jax.random.key(0))[0]
    grads = jax.tree.map(jnp.ones_like, params)
    for task, kind in ((plain, "quadratic"), (hard, "momentum")):
        for arm in LABELS:
            rates = dict.fromkeys(study.rated_by(arm) or ("factor",), jnp.float32(0.1))
            simple = task if arm != "schedule_free_adamw" else plain
            optimizer = simple.optimizer(arm_on(kind, arm), rates)
            state = jax.eval_shape(optimizer.init, params)
            updates, _ = jax.eval_shape(
                lambda state, optimizer=optimizer: optimizer.update(
                    params, state, params, value=1.0, batch=params["point"]
                ),
                state,
            )
            assert updates["point"].shape == params["point"].shape, arm
    sgd = hard.optimizer(arm_on("momentum", "sgd"), {"sgd": 0.5})
    first, state = sgd.update(grads, sgd.init(params), params)
    second, _ = sgd.update(grads, state, params)
    half = (1 + np.cos(np.pi / 6)) / 2  # of the cosine, after one step of six
    decay = -1e-4 * params["point"]
    np.testing.assert_allclose(first["point"], -0.5 + decay, rtol=1e-5)
    np.testing.assert_allclose(second["point"], -0.5 * half * 1.9 + decay, rtol=1e-5)


Values = dict[str, tuple[float, float, bool]]  # by arm: area, accuracy, diverged


def invented(pairs: dict[Pair, Values], folder: pathlib.Path, scope: str = "all") -> Runs:
    """Runs of such areas, which are also the other losses, over two seeds."""
    records = Records(folder)
    for pair, values in pairs.items():
        base = dict.fromkeys([*EXPERTS, "uniform"], (1.0, 0.9, False))
        for arm, (loss, accuracy, diverged) in (base | values).items():
            config = {"scope": scope, "classifies": True, "rates": {}, "test": False}
            config |= {"title": pair.task, "steps": 20, "seeds": 2}
            for seed in range(2):
                result = dict.fromkeys(report.MEASURES, loss * (1 + seed / 10))
                result |= {"validation_accuracy": accuracy, "diverged": diverged and seed == 1}
                key = Key(*pair[:1], arm, pair.setting, seed=seed)
                records._lines[key] = Record(key, config, result, "", {})
    return study.runs_of(records)


def ours(area: float = 0.9, accuracy: float = 0.91, diverged: bool = False) -> Values:
    return {"dao_e": (area, accuracy, diverged)}


A, B, C, D, E = (Pair("softmax", setting) for setting in SETTINGS)


@pytest.mark.parametrize(
    ("cases", "met", "missed"),
    [
        ({A: ours(), B: ours()}, [True, True, True, True], [[], [], [], []]),
        (
            {pair: ours(1.1 if pair == E else 1.0) for pair in (A, B, C, D, E)},
            [True] * 4,
            [[E], [], [], []],
        ),
        ({A: ours(1.1), B: ours()}, [False, True, True, True], [[A], [], [], []]),
        # The best single is the best one of each pair: Adam has 94 percent.
        (
            {A: ours() | {"adam": (1.0, 0.94, False)}, B: ours()},
            [True, False, True, True],
            [[], [A], [], []],
        ),
        ({A: ours(accuracy=0.898), B: ours(accuracy=0.9)}, [True, True, False, True], None),
        ({A: ours(accuracy=0.89)}, [True, False, False, True], [[], [A], [A], []]),
        ({A: ours(diverged=True), B: ours()}, [True, True, True, False], [[], [], [], [A]]),
        (
            {A: ours(diverged=True) | dict.fromkeys(EXPERTS, (1.0, 0.9, True)), B: ours()},
            [True, True, True, True],
            None,
        ),
    ],
)
def test_the_bars(
    cases: dict[Pair, Values], met: list[bool], missed: Any, tmp_path: pathlib.Path
) -> None:
    bars = report.bars_of(invented(cases, tmp_path), list(cases))
    assert [bar.met for bar in bars] == met
    if missed is not None:
        assert list(bars.values()) == missed


def test_ratios_and_ablations_are_geometric_means_paired_by_seed(
    tmp_path: pathlib.Path,
) -> None:
    cases = {A: ours(0.5, 0.9) | {"features": (1.0, 0.92, True)}}
    cases[B] = ours(2.0, 0.9) | {"features": (2.0, 0.9, False)}
    runs = invented(cases, tmp_path)
    np.testing.assert_allclose(runs.ratios([A, B], "dao_e", "uniform", "area"), [1, 1])
    runs._results[A, "dao_e"].append(dict.fromkeys(runs._results[A, "dao_e"][0], 1e9))
    runs._results[A, "features"].pop()  # an ablation has fewer seeds
    np.testing.assert_allclose(runs.ratios([A], "features", "dao_e", "area"), [2])
    bars = report.bars_of(invented({A: ours(1.1, 0.92), B: ours(0.9, 0.9)}, tmp_path), [A, B])
    assert [bar.measured for bar in bars] == ["50% of 2", "+1.00", "+1.00", "0 of 2"]
    (_, table) = report._ablations(invented(cases, tmp_path), [A, B])
    (row,) = table.rows  # type: ignore[union-attr]
    assert row[1:4] == ["2.000 ± 0.000", "1.000 ± 0.000", "1.414 ± 0.000"]
    assert row[-2:] == ["1.00 ± 0.00", "1"]


def test_drift_is_judged_by_paired_differences(tmp_path: pathlib.Path) -> None:
    cases = {A: {"dao_e": (0.5, 0.92, False), "features": (1.0, 0.9, False)}}
    runs = invented(cases, tmp_path, "drift")
    for result, area, accuracy in zip(
        runs._results[A, "features"], (1.0, 1.2), (0.9, 0.94), strict=True
    ):
        result.update({"area": area, "validation_accuracy": accuracy})  # type: ignore
    cells = report.drift_table(runs, [A], "features").rows[0]
    logs = 100 * np.log([0.5, 0.55 / 1.2])
    assert cells[1] == f"{logs.mean():+.2f} ± {abs(logs[0] - logs[1]) / 2:.2f}"
    assert cells[4] == "+0.00 ± 2.00"
    said = report.drift_verdict(runs, [A])
    assert "area better in 0 and worse in 1" in said
    assert "validation accuracy better in 0 and worse in 0" in said


@pytest.mark.usefixtures("no_pictures")
def test_the_committed_records_give_the_committed_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_reported("dao_e", tmp_path, monkeypatch)
    runs = study.runs_of(Records(tmp_path))
    bars = report.bars_of(runs, study.pairs_of(runs, "all", "few"))
    assert all(bar.met for bar in bars)


@pytest.mark.usefixtures("no_pictures")
def test_a_quick_study_through_the_command_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"dao_e --quick --steps 4 --settings same,small --seeds 1 --out {tmp_path}"
    monkeypatch.setattr(dao_e, "GRID", dao_e.Grid(-4, -4))
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    arms = [*EXPERTS, "uniform", "dao_e"]
    assert len(kept) == len(EXPERTS) + len(arms) * 2 * 2
    for arm in arms:
        (run,) = kept.select(kind="run", arm=arm, setting="small")
        assert run.config["test"] is False
        assert "test_loss" not in run.result
        (mean,) = kept.select(kind="mean", arm=arm, setting="small")
        assert ("multiplier" in mean.result["curves"]) == (arm in study.MIXTURES)
    assert "| DAO-E |" in (tmp_path / "README.md").read_text()

    def made_again(*_: Any) -> Any:
        raise AssertionError("a finished record was made again")

    monkeypatch.setattr(dao_e, "program_of", made_again)
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
    before = dao_e.Plan(["quadratic"], ["same"], ["adam"], 5, steps=10)
    for arm, seen in (("adam", True), ("features", False)):
        for final in (False, True, False):
            plan = before._replace(arms=[arm], final=final)
            dao_e.run_units(dao_e.units(plan, records), records)
        run, *others = records.select(kind="run", arm=arm)
        assert ("test_loss" in run.result) is seen
        assert len(others) + 1 == (dao_e.ABLATION_SEEDS if arm in ABLATIONS else 5)
    assert looks == [False, True, False]
    drifting = before._replace(tasks=["brighter"], arms=["features"])
    (unit,) = dao_e.units(drifting, records)  # where data drift, an ablation has all seeds
    assert len(unit.keys) == 5


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--tasks digits", "tasks is 'digits'; choose from quadratic, logistic"),
        ("--tasks mnist,long", "tasks has mnist, which need images; pass data, too"),
        ("--tasks mnist --data nowhere", "source 'nowhere' does not exist"),
        ("--settings worse", "settings is 'worse'; choose from tuned, same"),
        ("--arms muon", "arms is 'muon'; choose from sgd, adam"),
        ("--seeds 0", "seeds is 0; pass a whole number above 0"),
        ("--steps 0", "steps is 0; pass a whole number above 0"),
        ("--workers 0", "workers is 0; pass a whole number above 0"),
        ("--quick --steps -1", "steps is -1; pass a whole number above 0"),
        ("--out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    line: str,
    sentence: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(f"dao_e {line}", sentence, tmp_path, monkeypatch, capsys)
