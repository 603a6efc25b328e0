"""The DAO-E study: tasks, settings, programs, bars, the report and the command line."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import assert_refused, call, interrupt

import optabs
from benchmarks.dao_e import settings, study, study_report, tasks_data, workers
from benchmarks.dao_e.ablations import ablation_section
from benchmarks.dao_e.arms import ARMS, NO_FEATURES, RULE, SINGLES, UNIFORM
from benchmarks.dao_e.bars import bars_of
from benchmarks.dao_e.drift import table, verdict
from benchmarks.dao_e.program import CEILING, FLOOR, Outcome, measures_of, program_of
from benchmarks.dao_e.records import MEASURES, Pair, Records, ratios_to_uniform
from benchmarks.dao_e.study import MAKERS, Plan, Unit, task_of
from benchmarks.dao_e.tasks import NEED_IMAGES, TASKS, Task
from benchmarks.dao_e.tasks_drift import NEW_CLASS
from benchmarks.survey.problems import Split

EMBEDDED = [name for name in MAKERS if name not in NEED_IMAGES]
QUICK = "dao_e --study --quick --tasks quadratic --steps 10"


@functools.cache
def example(name: str) -> tuple[Task, Any, Any, Any]:
    """A task with its start and its first batch."""
    task = task_of(name, pathlib.Path() if name in NEED_IMAGES else None, None)

    @jax.jit
    def begin(train: Any) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], task.feed(jax.random.key(1), 4))
        return task.batch(train, first)

    # Numbers of the right shapes, since some seconds would go into compiling the draws.
    shapes, statistics = jax.eval_shape(task.init, jax.random.key(0))
    draws = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(draws.normal(0, 0.3, x.shape), "f4"), shapes)
    statistics = jax.tree.map(lambda x: jnp.ones(x.shape), statistics)
    return task, params, statistics, begin(task.train)


@pytest.fixture
def drawn_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of MNIST and Fashion-MNIST, as small as the tasks make them."""
    images = jax.random.uniform(jax.random.key(0), (300, 14, 14, 1))
    labels = jnp.arange(300) % 10
    splits = [Split(images[rows], labels[rows]) for rows in np.split(np.arange(300), 3)]
    monkeypatch.setattr(tasks_data, "pooled", lambda name, source: splits)


@pytest.mark.usefixtures("drawn_images")
@pytest.mark.parametrize("name", MAKERS)
def test_every_task_has_a_finite_loss_and_a_gradient_for_all_parameters(name: str) -> None:
    task, params, statistics, batch = example(name)

    @jax.jit
    def look(params: Any, statistics: Any, batch: Any, validation: Any) -> Any:
        slope = jax.value_and_grad(task.loss_fn, has_aux=True)
        return slope(params, statistics, batch), task.evaluate(params, statistics, validation)

    held_out = jax.tree.map(lambda leaf: leaf[:50], task.validation)
    ((loss, after), grads), scores = look(params, statistics, batch, held_out)
    assert 0 < float(loss) < np.inf
    assert jax.tree.structure(after) == jax.tree.structure(statistics)
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
    # Softmax ignores what attention's key bias adds to all scores of a query.
    dead = [path for path, leaf in jax.tree.leaves_with_path(grads) if not np.any(leaf)]
    assert all("key" in jax.tree_util.keystr(path) for path in dead)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) <= 1e5
    assert task.steps <= (10_000 if name == "long" else 2000)
    assert np.isfinite(scores[0])
    assert np.isfinite(scores[1]) == task.classifies


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_splits_are_fixed_and_apart(name: str) -> None:
    one = task_of(name, None, None)
    for read in (tasks_data.digits, tasks_data.text):
        read.cache_clear()
    other = MAKERS[name](None)
    splits = [(t.train, t.validation, t.test) for t in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *splits)
    if one.classifies:
        cases = [
            {np.asarray(case).tobytes() for case in split.inputs}
            for split in (one.train, one.validation, one.test)
        ]
        assert len(set.union(*cases)) == sum(map(len, cases))


def test_large_images_are_pooled() -> None:
    images = np.arange(28 * 28.0).reshape(1, 28, 28, 1)
    small = tasks_data.halved(images)
    assert small.shape == (1, 14, 14, 1)
    assert small[0, 0, 1, 0] == np.mean([2, 3, 30, 31])
    assert tasks_data.halved(small) is small


def test_there_are_ten_tasks_and_those_of_two_scopes_are_dear() -> None:
    assert len(TASKS) >= 10
    scopes = {name: task_of(name, None, None).scope for name in EMBEDDED}
    assert {name for name, scope in scopes.items() if scope == "few"} == {
        "long",
        "transformer",
    }


def test_batch_norm_keeps_statistics_and_reads_them_in_evaluation() -> None:
    task, params, statistics, batch = example("convnet")
    _, after = jax.jit(task.loss_fn)(params, statistics, batch)
    assert any(
        not np.array_equal(*pair)
        for pair in zip(jax.tree.leaves(statistics), jax.tree.leaves(after), strict=True)
    )
    evaluate = jax.jit(task.evaluate)
    before, later = (evaluate(params, x, task.validation)[0] for x in (statistics, after))
    assert float(before) != float(later)


def test_data_drift_as_they_say() -> None:
    def labels(name: str, progress: float) -> tuple[np.ndarray, np.ndarray]:
        task = task_of(name, None, None)
        draws = task.feed(jax.random.key(3), 100)
        at = jax.tree.map(lambda leaf: leaf[int(100 * progress)], draws)
        # As many places as would be drawn in a hundred steps.
        many = at._replace(
            places=draws.places.ravel(), noise=draws.noise.ravel(), labels=draws.labels.ravel()
        )
        batch = task.batch(task.train, many)
        clean = task.batch(task.train, many._replace(progress=jnp.zeros([])))
        return np.asarray(batch.labels), np.asarray(clean.labels)

    np.testing.assert_array_equal(*labels("noisy_labels", 0.49))
    noisy, clean = labels("noisy_labels", 0.5)
    np.testing.assert_allclose(np.mean(noisy != clean), 0.4 * 0.9, atol=0.03)
    assert NEW_CLASS not in labels("new_class", 0.49)[0]
    np.testing.assert_allclose(
        np.mean(labels("new_class", 0.5)[0] == NEW_CLASS), 0.1, atol=0.03
    )
    task = task_of("brighter", None, None)
    draws = task.feed(jax.random.key(3), 2)
    first, second = (jax.tree.map(lambda leaf, at=at: leaf[at], draws) for at in (0, 1))
    dark = task.batch(task.train, second._replace(progress=first.progress)).inputs
    np.testing.assert_allclose(task.batch(task.train, second).inputs - dark, 0.5, atol=1e-6)
    assert float(task.validation.inputs.min()) == 1.0


def test_the_settings_are_those_of_the_study() -> None:
    best = {"sgd": 0.1, "adam": 0.01, "rmsprop": 0.01, "lion": 0.001}
    table = {name: list(settings.rates_in(name, best).values()) for name in settings.SETTINGS}
    assert table == {
        "tuned": [0.1, 0.01, 0.01, 0.001],
        "same": [0.001] * 4,
        "bad": [0.1, 0.3, 0.3, 0.03],
        "badA": [3.0, 0.01, 0.3, 0.03],
        "small": [0.01, 0.001, 0.001, 0.0001],
    }


@pytest.mark.parametrize(
    ("minimum", "tried", "best"),
    [(-4, 9, 1e-2), (-8, 10, 1e-4), (2, 12, 10.0), (-30, 14, settings.half_decade(-13))],
)
def test_the_grid_grows_where_the_best_rate_is_at_its_end(
    minimum: int, tried: int, best: float
) -> None:
    seeds = set()

    def loss_of(rate: float, seed: int) -> float:
        seeds.add(seed)
        return (2 * np.log10(rate) - minimum) ** 2

    rates, losses = settings.tune(loss_of)
    assert seeds == set(settings.TUNING_SEEDS)
    assert len(rates) == tried
    assert settings.best_rate(rates, losses) == best


def test_a_rate_that_diverged_is_not_chosen() -> None:
    assert settings.best_rate([0.1, 1.0], [[0.5, 0.5], [0.1, np.inf]]) == 0.1
    assert settings.best_rate([0.1, 1.0], [[0.5, 0.5], [0.1, None]]) == 0.1  # type: ignore


def test_a_program_is_what_a_hand_written_loop_gives() -> None:
    task = task_of("quadratic", None, 6)
    outcome = program_of(task, ARMS["adam"])([0.1], 3)
    start_key, feed_key = jax.random.split(jax.random.key(3))
    params, _ = task.init(start_key)
    optimizer = optabs.adam(0.1)
    state, losses = optimizer.init(params), []
    for noise in task.feed(feed_key, 6):
        (loss, _), grads = jax.value_and_grad(task.loss_fn, has_aux=True)(params, {}, noise)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    np.testing.assert_allclose(outcome.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(
        outcome.validation[0], task.evaluate(params, {}, ())[0], rtol=1e-4
    )
    assert outcome.test is None
    assert outcome.watched == {}


def test_the_quadratics_noise_is_in_its_gradient_only() -> None:
    task, params, _, noise = example("quadratic")
    (loss, _), grads = jax.value_and_grad(task.loss_fn, has_aux=True)(params, {}, noise)
    clean = jax.grad(task.loss_fn, has_aux=True)(params, {}, jnp.zeros_like(noise))[0]
    np.testing.assert_allclose(loss, task.evaluate(params, {}, ())[0])
    np.testing.assert_allclose(grads["point"] - clean["point"], noise, atol=1e-6)


def test_every_arm_builds_under_every_kind_of_task() -> None:
    plain = task_of("quadratic", None, 6)
    hard = plain._replace(momentum=0.9, cosine=True, weight_decay=1e-4)
    params = plain.init(jax.random.key(0))[0]
    for task in (plain, hard):
        for name, arm in ARMS.items():
            optimizer = arm.build(task, dict.fromkeys(arm.experts, jnp.float32(0.1)))
            state = jax.eval_shape(optimizer.init, params)
            updates, _ = jax.eval_shape(
                lambda state, optimizer=optimizer: optimizer.update(
                    params, state, params, value=1.0, batch=params["point"]
                ),
                state,
            )
            assert updates["point"].shape == params["point"].shape, name
    sgd = ARMS["sgd"].build(hard, {"sgd": 0.5})
    state, grads = sgd.init(params), jax.tree.map(jnp.ones_like, params)
    first, state = sgd.update(grads, state, params)
    second, _ = sgd.update(grads, state, params)
    half = (1 + np.cos(np.pi / 6)) / 2  # of the cosine, after one step of six
    decay = -1e-4 * params["point"]
    np.testing.assert_allclose(first["point"], -0.5 + decay, rtol=1e-5)
    np.testing.assert_allclose(second["point"], -0.5 * half * 1.9 + decay, rtol=1e-5)


def test_divergence_is_bounded_and_seen() -> None:
    def measured(losses: list[float], loss: float = 0.5) -> dict[str, Any]:
        return measures_of(Outcome(np.array(losses, np.float32), (loss, 0.5), None, {}))

    good = measured([2.0] + [1.0] * 19)
    assert good["area"] == pytest.approx(1.05)
    assert (good["final_loss"], good["validation_loss"]) == (1.0, 0.5)
    assert not good["diverged"]
    jump = measured([2.0] + [1e9] * 9 + [1.0] * 10)
    assert jump["area"] == pytest.approx((2 + 9 * 2 * CEILING + 10) / 20)
    assert not jump["diverged"]
    assert measured([2.0] + [3.0] * 19)["diverged"]
    assert measured([2.0] + [0.0] * 19, 0.0)["final_loss"] == pytest.approx(2 * FLOOR)
    broken = measured([2.0] + [1.0] * 18 + [np.nan], np.nan)
    assert broken["diverged"]
    assert broken["final_loss"] == broken["validation_loss"] == 2 * CEILING
    assert "test_accuracy" not in good


Values = dict[str, tuple[float, float, bool]]  # by arm: area, accuracy, diverged


def invented(pairs: dict[Pair, Values], scope: str = "all") -> Records:
    """Records of such areas, which are also the other losses, over two seeds."""
    records: Records = {}
    for pair, values in pairs.items():
        base = dict.fromkeys([*SINGLES, UNIFORM], (1.0, 0.9, False))
        for arm, (loss, accuracy, diverged) in (base | values).items():
            config = {
                "scope": scope,
                "title": pair.task,
                "classifies": True,
                "steps": 20,
                "rates": {},
                "seeds": 2,
                "test": False,
            }
            record = records.setdefault((pair.task, arm), {"config": config, "results": {}})
            record["config"]["rates"][pair.setting] = [1.0] * 4
            watched = {key: [0.25, 0.25] for key in (*SINGLES, "multiplier")}
            record["results"][pair.setting] = {
                **{key: [loss, 1.1 * loss] for key in MEASURES},
                "validation_accuracy": [accuracy, accuracy],
                "diverged": [False, diverged],
                "curve": [1.0, loss],
                "watched": watched if arm == RULE else {},
            }
    return records


def rule(area: float = 0.9, accuracy: float = 0.91, diverged: bool = False) -> Values:
    return {RULE: (area, accuracy, diverged)}


A, B, C, D, E = (Pair("first", str(place)) for place in range(5))


@pytest.mark.parametrize(
    ("cases", "met", "missed"),
    [
        ({A: rule(), B: rule()}, [True, True, True, True], [[], [], [], []]),
        (
            {pair: rule(1.1 if pair == E else 1.0) for pair in (A, B, C, D, E)},
            [True] * 4,
            [[E], [], [], []],
        ),
        ({A: rule(1.1), B: rule()}, [False, True, True, True], [[A], [], [], []]),
        # The best single is the best one of each pair: Adam has 94 percent.
        (
            {A: rule() | {"adam": (1.0, 0.94, False)}, B: rule()},
            [True, False, True, True],
            [[], [A], [], []],
        ),
        ({A: rule(accuracy=0.898), B: rule(accuracy=0.9)}, [True, True, False, True], None),
        ({A: rule(accuracy=0.89)}, [True, False, False, True], [[], [A], [A], []]),
        ({A: rule(diverged=True), B: rule()}, [True, True, True, False], [[], [], [], [A]]),
        (
            {A: rule(diverged=True) | dict.fromkeys(SINGLES, (1.0, 0.9, True)), B: rule()},
            [True, True, True, True],
            None,
        ),
    ],
)
def test_the_bars(cases: dict[Pair, Values], met: list[bool], missed: Any) -> None:
    bars = bars_of(invented(cases), list(cases), RULE)
    assert [bar.met for bar in bars] == met
    if missed is not None:
        assert [bar.missed for bar in bars] == missed


def test_a_bar_says_what_was_measured() -> None:
    cases = {A: rule(1.1, 0.92), B: rule(accuracy=0.90)}
    bars = bars_of(invented(cases), list(cases), RULE)
    assert [bar.measured for bar in bars] == ["50% of 2", "+1.00", "+1.00", "0 of 2"]


def test_ratios_are_geometric_means_paired_by_seed() -> None:
    records = invented({A: rule(0.5), B: rule(2.0)})
    np.testing.assert_allclose(ratios_to_uniform(records, [A, B], RULE, "area"), [1, 1])
    np.testing.assert_allclose(ratios_to_uniform(records, [A], RULE, "area"), [0.5, 0.5])
    records["first", RULE]["results"]["0"]["area"] = [0.5]
    np.testing.assert_allclose(ratios_to_uniform(records, [A], RULE, "area"), [0.5])


def test_an_ablation_is_set_against_the_rule_on_its_own_seeds() -> None:
    cases = {A: rule(0.5, 0.9) | {NO_FEATURES: (1.0, 0.92, True)}, B: rule(2.0, 0.9)}
    records = invented(cases)
    results = records["first", RULE]["results"]
    records["first", NO_FEATURES]["results"]["1"] = {
        name: list(values) for name, values in results["1"].items() if name != "watched"
    }
    for measures in results.values():
        for name in (*MEASURES, "validation_accuracy"):
            measures[name].append(1e9)
    text = ablation_section(records, [A])
    row = "| rule without features | 2.000 ± 0.000 | 2.000 ± 0.000 | 2.000 ± 0.000 | "
    assert row + "2.000 ± 0.000 | 2.00 ± 0.00 | 1 |" in text
    both = ablation_section(records, [A, B])
    assert "| 2.000 ± 0.000 | 1.000 ± 0.000 | 1.414 ± 0.000 |" in both


def test_drift_is_judged_by_paired_differences() -> None:
    cases = {A: {RULE: (0.5, 0.92, False), NO_FEATURES: (1.0, 0.9, False)}}
    records = invented(cases, "drift")
    results = records["first", NO_FEATURES]["results"]["0"]
    results["area"] = [1.0, 1.2]
    results["validation_accuracy"] = [0.9, 0.94]
    cells = table(records, [A], NO_FEATURES).rows[0]
    logs = 100 * np.log([0.5, 0.55 / 1.2])
    assert cells[1] == f"{logs.mean():+.2f} ± {abs(logs[0] - logs[1]) / 2:.2f}"
    assert cells[4] == "+0.00 ± 2.00"
    said = verdict(records, [A])
    assert "area better in 1 and worse in 0" in said
    assert "validation accuracy better in 0 and worse in 0" in said


def test_the_report_is_made_from_the_records(tmp_path: pathlib.Path) -> None:
    records = invented({A: rule(), B: rule(1.1, 0.8)})
    text = report_of(records, tmp_path)
    assert "50% of 2 | **missed**" in text
    assert "not on first 1" in text
    assert "| mean | 90.00 | 90.00 | 90.00 | 90.00 | 90.00 | 85.50 |" in text
    assert "Test accuracy" not in text
    for arm in [*SINGLES, UNIFORM, RULE]:
        records["first", arm]["config"]["test"] = True
        for results in records["first", arm]["results"].values():
            results["test_accuracy"] = [0.75, 0.75]
    assert "| mean | 75.00 | 75.00 | 75.00 |" in report_of(records, tmp_path)


def report_of(records: Records, folder: pathlib.Path) -> str:
    study_report.write(records, folder)
    return (folder / "README.md").read_text()


def records_in(folder: pathlib.Path) -> dict[str, Any]:
    paths = sorted(folder.rglob("*.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in paths}


def test_end_to_end_and_nothing_is_run_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"{QUICK} --out {tmp_path}") == 0
    assert "The measured rule" in capsys.readouterr().out
    kept = records_in(tmp_path)
    assert list(kept) == [
        *sorted(f"runs/quadratic/{arm}.json" for arm in [*SINGLES, UNIFORM, RULE]),
        *sorted(f"tuning/quadratic/{arm}.json" for arm in SINGLES),
    ]
    record = kept["runs/quadratic/rule.json"]
    assert {"date", "versions", "device", "python"} <= record["environment"].keys()
    assert record["results"].keys() == settings.SETTINGS.keys()
    assert all(len(results["area"]) == 2 for results in record["results"].values())
    assert "test_loss" not in record["results"]["tuned"]
    for name in ("ratios", "curves", "weights"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def made_again(*_: Any) -> Any:
        raise AssertionError("a finished record was made again")

    with monkeypatch.context() as patched:
        patched.setattr(workers.study, "program_of", made_again)
        assert call(patched, f"{QUICK} --out {tmp_path}") == 0
    assert records_in(tmp_path) == kept


def small_plan(folder: pathlib.Path, **changes: Any) -> Plan:
    fields = {"tasks": ("quadratic",), "settings": ("same",), "arms": tuple(SINGLES)}
    return Plan(**{**fields, "seeds": 1, "folder": folder, "steps": 5, **changes})


def test_the_test_data_are_seen_by_finalists_with_final_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SINGLES:
        unit = Unit("quadratic", name, True)
        path = unit.path(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"results": {"best": 0.1}}')
    looks: list[bool] = []

    def program(task: Task, arm: Any, *, test: bool) -> Any:
        looks.append(test)
        scores = (0.5, 0.5)
        return lambda rates, seed: Outcome(np.ones(5), scores, scores if test else None, {})

    monkeypatch.setattr(study, "program_of", program)
    final = small_plan(tmp_path, final=True)
    before = small_plan(tmp_path)
    for arm, seen in (("adam", True), (NO_FEATURES, False)):
        unit = Unit("quadratic", arm, False)
        study.make(unit, before)
        assert study.is_finished(unit, before)
        assert study.is_finished(unit, final) is not seen
        study.make(unit, final)
        assert study.is_finished(unit, final)
        assert study.is_finished(unit, before)
        results = study.read(final._replace(arms=(arm,)))["quadratic", arm]["results"]
        assert ("test_loss" in results["same"]) is seen
    assert looks == [False, True, False, False]


def test_ablations_have_fewer_seeds_but_for_the_drift_trial(tmp_path: pathlib.Path) -> None:
    def seeds(task: str, arm: str) -> int:
        unit = Unit(task, arm, False)
        for name in SINGLES:
            path = Unit(task, name, True).path(tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"results": {"best": 0.1}}')
        return study.config_of(unit, small_plan(tmp_path, seeds=5))["seeds"]

    assert seeds("quadratic", RULE) == seeds("brighter", RULE) == 5
    assert seeds("quadratic", NO_FEATURES) == study.ABLATION_SEEDS
    assert seeds("brighter", NO_FEATURES) == 5


def test_interruption_keeps_finished_records(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, study, "make", at=2)
    line = f"{QUICK} --settings same --seeds 1 --out {tmp_path}"
    assert call(monkeypatch, line) == 130
    assert "finished records are kept" in capsys.readouterr().err
    assert len(records_in(tmp_path)) == 1


def test_two_workers_make_the_same_records(tmp_path: pathlib.Path) -> None:
    plan = small_plan(tmp_path / "two")
    units = [Unit("quadratic", name, True) for name in ("sgd", "adam")]
    workers.make_all(units, plan, 2)
    alone = plan._replace(folder=tmp_path / "one")
    workers.make_all(units, alone, 1)
    for unit in units:
        one, two = (json.loads(unit.path(p.folder).read_text()) for p in (alone, plan))
        assert one["config"] == two["config"]
        assert one["results"]["best"] == two["results"]["best"]
        losses = [np.array(each["results"]["validation_loss"], float) for each in (one, two)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
        assert np.isfinite(losses[0]).any()
        if hasattr(study.store.os, "sched_getaffinity"):
            assert two["environment"]["cores"] == 1


def test_what_needs_images_is_left_out_aloud(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr("benchmarks.dao_e.command.make_all", lambda *given: None)
    monkeypatch.setattr(study, "read", lambda plan: plans.append(plan) or {})
    monkeypatch.setattr(study_report, "write", lambda *given: None)
    assert call(monkeypatch, f"dao_e --study --out {tmp_path}") == 0
    assert "Left out" in (said := capsys.readouterr().out)
    assert ", ".join(NEED_IMAGES) in said
    assert plans[0].tasks == tuple(EMBEDDED)
    assert plans[0].arms == tuple(ARMS)


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
    assert_refused(f"dao_e --study {line}", sentence, tmp_path, monkeypatch, capsys)
