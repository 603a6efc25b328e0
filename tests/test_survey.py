"""The survey study: optimizers, tasks, targets, the choice of rates, records and tables."""

import pathlib
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import RESULTS, assert_reported, call

import optabs
from benchmarks.lab import report as lab_report
from benchmarks.lab.records import Records
from benchmarks.lab.study import QUICK_STEPS, TUNING_SEEDS, Tuning
from benchmarks.lab.tasks import NOISE, breast_cancer_splits
from benchmarks.lab.training import Task
from benchmarks.survey import STUDY, report, study
from benchmarks.survey.study import ARMS, FAMILIES, PROBLEMS, SEEN, judged, scores_of


def test_every_optimizer_of_optabs_has_a_row_in_one_family() -> None:
    families = [(name, family) for family, names in FAMILIES.items() for name in names]
    for name, maker in vars(optabs).items():
        module = getattr(maker, "__module__", "")
        if module.startswith("optabs.optimizers.") and name != "nag_eval_params":
            (family,) = [family for each, family in families if each == name]
            assert family.endswith("absolute") == name.endswith("_abs")
            assert name in ARMS


@pytest.mark.slow
def test_noise_sparsity_and_cases_are_as_declared() -> None:
    key = jax.random.key(0)
    noisy, sparse, cancer = (
        PROBLEMS[name].make(None) for name in ("noisy", "sparse", "breast_cancer")
    )
    params, _ = noisy.init(key)

    def slope(task: Task, item: jax.Array) -> jax.Array:
        return jax.grad(task.loss_fn, has_aux=True)(params, {}, item)[0]["point"]

    clean = slope(noisy, jnp.zeros(len(params["point"])))
    noise, seen = noisy.feed(key, 2000), sparse.feed(key, 2000)
    np.testing.assert_allclose(np.std(noise), NOISE, rtol=0.02)
    np.testing.assert_allclose(slope(noisy, noise[0]), clean + noise[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.mean(seen), SEEN, rtol=0.05)
    shown = np.where(seen[3], clean, 0.0)
    np.testing.assert_allclose(slope(sparse, seen[3]), shown, rtol=1e-5)
    splits = breast_cancer_splits()
    assert [len(split.labels) for split in splits] == [300, 100, 169]
    np.testing.assert_allclose(splits[0].inputs.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(splits[0].inputs.std(0), 1.0, rtol=1e-4)
    first, second = np.asarray(cancer.feed(key, 18)).reshape(2, 9 * 32)  # epochs
    assert len(np.unique(first)) == first.size  # each case at most once
    assert not np.array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nag", "sgd_cosine"])
def test_a_run_is_what_a_hand_written_loop_gives(name: str) -> None:
    task = PROBLEMS["noisy"].make(None)._replace(steps=6)
    outcome, curve = study.run_of(task, name)(0.3, 4)
    start_key, feed_key = jax.random.split(jax.random.key(4))
    params, _ = task.init(start_key)
    decaying = optax.cosine_decay_schedule(0.3, 6)
    optimizer = optabs.nag(0.3) if name == "nag" else optabs.sgd(decaying)
    state, losses = optimizer.init(params), [task.evaluate(params, {}, ())[0]]
    for item in task.feed(feed_key, 6):
        grads, _ = jax.grad(task.loss_fn, has_aux=True)(params, {}, item)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        shown = optabs.nag_eval_params(state, params) if name == "nag" else params
        losses.append(task.evaluate(shown, {}, ())[0])
    np.testing.assert_allclose(curve, losses, rtol=1e-5)
    np.testing.assert_allclose(outcome.validation[0], losses[-1], rtol=1e-5)


def test_a_target_is_reached_where_the_loss_stays_below_it() -> None:
    curves = np.ones((6, 41))
    curves[[0, 1, 3, 4], 10:] = 0.05  # arrive
    curves[1, 30] = 0.5  # leaves once more
    curves[2, 40:] = 0.05  # too late to have stayed
    curves[3, 20], curves[4, 5] = np.nan, 1001.0
    scores = scores_of(curves, share=0.1, steps=80)
    np.testing.assert_array_equal(scores["steps"], [20, 62, *4 * [np.inf]])
    np.testing.assert_allclose(scores["final"], [0.05, 0.05, 0.525, np.inf, np.inf, 1.0])
    by_steps, by_end = (PROBLEMS[name]._replace(share=0.1) for name in ("saddle", "noisy"))
    # A run that does not arrive is worse than any that does, and the more the further off.
    expected = [20, 62, 80 * 1.525, np.inf, np.inf, 160]
    np.testing.assert_allclose(judged(curves, by_steps, 80), expected)
    np.testing.assert_array_equal(judged(curves, by_end, 80), scores["final"])


@pytest.mark.slow
def test_the_choice_reads_no_reported_seed_and_no_test_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def results(seeds: int) -> dict[str, dict[str, Any]]:
        (unit,) = STUDY.units(["breast_cancer"], ["adam"], seeds=seeds, steps=20)
        made = pickle.loads(pickle.dumps(unit)).make(unit.keys, {})  # as workers have it
        return {f"{key.kind} {key.seed}": result for key, result in made}

    def broken(source: pathlib.Path | None) -> Task:
        task = problem.make(source)
        return task._replace(test=task.test._replace(labels=1 - task.test.labels))

    first, problem = results(2), PROBLEMS["breast_cancer"]
    monkeypatch.setitem(PROBLEMS, "breast_cancer", problem._replace(make=broken))
    other = results(3)
    tuning = first["tuning None"]
    assert tuning == other["tuning None"]
    assert np.shape(tuning["final"]) == (len(tuning["rates"]), len(TUNING_SEEDS))
    assert list(other) == ["tuning None", "run 0", "run 1", "run 2", "curve None"]
    accuracies = [each["run 1"].pop("test_accuracy") for each in (first, other)]
    assert accuracies[0] > 0.8
    assert sum(accuracies) == pytest.approx(1.0)
    assert first["run 1"] == other["run 1"]


def test_end_to_end(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"survey --quick --tasks saddle --arms nag,sgd_cosine --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    # The saddle has no noise, and so no arm whose rate decays.
    kinds = [(record.key.arm, record.key.kind) for record in kept]
    assert kinds == [("nag", kind) for kind in ("curve", "path", "run", "run", "tuning")]
    (path,) = kept.select(kind="path")
    np.testing.assert_allclose(path.result["points"][0], [1e-4, 0.1])
    assert "A saddle: 40 steps, 2 seeds" in (tmp_path / "README.md").read_text()
    assert not list(tmp_path.glob("*.png"))  # they are of the whole study
    (unit,) = STUDY.units(["saddle"], ["nag"], seeds=2, steps=QUICK_STEPS)
    assert unit.missing(kept) == []  # the same call makes nothing


@pytest.mark.slow
def test_the_committed_records_give_the_committed_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")  # drawn, and not rendered
    assert_reported("survey", tmp_path, monkeypatch)
    drawn, committed = (
        {path.name for path in each.glob("*.png")} for each in (tmp_path, RESULTS / "survey")
    )
    assert drawn == committed == {f"{name}.png" for name in report.PICTURES}


def test_a_divergence_is_shown_as_one() -> None:
    tuning = Tuning([1e-6, 1e-5], np.array([[1.0], [2.0]])).result()
    run = {"rate": 1e-6, "steps": None, "final": None}
    config = PROBLEMS["saddle"]._asdict() | {"title": "x", "steps": 5, "tuning_seeds": [7]}
    table = report._task_table({"sgd": report.Row(config, tuning, [run, run], {})})
    assert table.rows == [["sgd", "1e-06*", "0/2", "-", "diverged", "diverged", "diverged"]]
