"""The study of Gadam: what arms spend, its programs, its bars, and its command."""

import collections
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import call

import optabs
from benchmarks import gadam
from benchmarks.gadam import program, report, tasks
from benchmarks.gadam.program import PEERS, program_of
from benchmarks.gadam.tasks import Arm, Problem, Task, spent_of
from benchmarks.lab import timing
from benchmarks.lab.functions import FUNCTIONS
from benchmarks.lab.records import FILE, Key, Record, Records


@pytest.fixture(autouse=True)
def _ranks_of_evosax_are_promoted() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "spent"),
    [
        (Arm("best", restarts=1), (3, 24, 24)),
        (Arm("restarts", restarts=3), (3, 18, 18)),
        (Arm("rule", 2, 0.1, "mixed"), (12, 24, 18)),
        # What is spent before the first look: those that learn once learn twice.
        (Arm("once", 2, 0.1, "mixed", relearn=False), (12, 24, 27)),
    ],
    ids=lambda each: getattr(each, "label", ""),
)
def test_an_arm_spends_what_is_counted_and_keeps_its_best(
    monkeypatch: pytest.MonkeyPatch, arm: Arm, spent: tuple[int, int, int]
) -> None:
    counts: collections.Counter[str] = collections.Counter()
    plain = tasks.task_of("rastrigin-2-rotated")

    def pose(key: jax.Array) -> Problem:
        def counting(name: str) -> Any:
            def loss_fn(x: jax.Array, data: Any) -> jax.Array:
                jax.debug.callback(lambda x: counts.update([name]), x)
                return getattr(problem, name)(x, data)

            return loss_fn

        problem = plain.pose(key)
        return problem._replace(loss_fn=counting("loss_fn"), judge=counting("judge"))

    task = plain._replace(units=3, epochs=8, pose=pose)
    monkeypatch.setattr(program, "TOGETHER", 2)
    outcome, looks = program_of(task, arm)([1e-2, 3e-3], [0, 1]), spent_of(arm, task)
    jax.effects_barrier()
    assert outcome.curve.shape == (2, len(looks))
    assert (looks[0], looks[-1], counts["judge"] / 2) == spent
    assert counts["loss_fn"] / 2 == looks[-1] <= task.units * task.epochs
    assert (np.diff(outcome.curve, axis=1) <= 0).all()
    for seed in range(2):
        problem = plain.pose(jax.random.split(jax.random.key(seed))[0])
        loss = problem.judge(outcome.params[seed], None)
        np.testing.assert_allclose(loss, outcome.curve[seed, -1], rtol=1e-4)
    if not arm.restarts:
        assert outcome.diversity.shape == (2, len(looks))
        assert (outcome.diversity > 0).all()


@pytest.mark.parametrize("name", ["ackley-2-shifted", "breast_cancer"])
def test_no_arm_spends_more_gradients_than_the_best_of_g(name: str) -> None:
    arms, task = tasks.arms_of(name), tasks.task_of(name)
    most = spent_of(arms["best_of_g"], task)[-1]
    assert most == task.units * task.epochs * task.steps
    assert all(0.9 * most <= spent_of(arm, task)[-1] <= most for arm in arms.values())
    assert len({arm.label for arm in arms.values()}) == len(arms)


@pytest.mark.slow
def test_the_best_of_g_is_what_optax_loops_give() -> None:
    task, rate = tasks.task_of("ackley-3-shifted")._replace(units=4, epochs=10), 1e-2
    (curve,) = program_of(task, Arm("best", restarts=1))([rate], [5]).curve
    pose_key, run_key = jax.random.split(jax.random.key(5))
    problem, optimizer = task.pose(pose_key), optabs.adam(rate * task.scale)
    start_key = jax.random.split(run_key, 1)[0]
    x = optabs.gadam(optimizer, task.units).init(start_key, problem.init_fn).params
    state, best = jax.vmap(optimizer.init)(x), []

    @jax.jit
    @jax.vmap
    def step(x: jax.Array, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(problem.loss_fn)(x, None), state, x)
        x = optax.apply_updates(x, updates)
        return x, state, problem.judge(x, None)

    for _ in range(10):
        x, state, losses = step(x, state)
        best.append(losses.min())
    np.testing.assert_allclose(curve, np.minimum.accumulate(best), rtol=1e-3)


def test_a_draw_has_the_mean_and_the_spread_of_its_leaf() -> None:
    leaf = 3 + 2 * jax.random.normal(jax.random.key(0), (5000,))
    drawn = tasks.spread_like(jax.random.key(1), {"w": leaf, "b": jnp.zeros(3)})
    np.testing.assert_allclose([drawn["w"].mean(), drawn["w"].std()], [3, 2], rtol=0.05)
    np.testing.assert_array_equal(drawn["b"], jnp.zeros(3))


@pytest.mark.parametrize("lowered", [3, 4])
def test_bars_are_medians_ratios_and_standard_errors(
    tmp_path: pathlib.Path, lowered: int
) -> None:
    """Five functions, `lowered` of them lowered elevenfold, and a network 1.2 errors above."""
    kept = Records(tmp_path)

    def add(task: str, arm: str, *losses: float) -> None:
        for seed, loss in enumerate(losses):
            kept.add(Record(Key(task, arm, seed=seed), {}, {"loss": loss}, "", {}))
        kept.add(Record(Key(task, arm, kind="curves"), {"seeds": len(losses)}, {}, "", {}))

    for index, name in enumerate(FUNCTIONS):
        add(f"{name}-30-shifted", "best_of_g", 90.0, 100.0, 300.0)
        add(f"{name}-30-shifted", "tuned", 100.0 / (11 if index < lowered else 9), 1e-9, 1e9)
    add("digits", "best_of_g", 0.9, 1.0, 1.1)
    add("digits", "tuned", 1.0, 1.1, 1.2)
    add("ackley-30-shifted", "literal", 0.0, 0.0, -1e-6)
    found = report.Results(kept)
    functions, networks = report.bars_of(found, "tuned")
    assert (functions.measured, functions.met) == (f"{lowered} of 5", lowered == 4)
    assert not networks.met
    # 0.1 over the root of 0.01/3 + 0.01/3.
    assert found.errors("digits", "tuned") == pytest.approx(1.2247, rel=1e-3)
    assert found.ratio("rastrigin-30-shifted", "tuned") == pytest.approx(11)
    assert found.median("ackley-30-shifted", "literal") == report.FLOOR
    noisy = {"ackley-2-noisy": tasks.task_of("ackley-2-noisy")}
    assert not gadam.peer_units_of(noisy, 2, kept)


@pytest.mark.slow
def test_a_study_with_methods_is_made_once_and_reports(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: PEERS[name]._replace(settings=PEERS[name].settings[1:3]) for name in PEERS}
    monkeypatch.setattr(program, "PEERS", {name: few[name] for name in list(few)[:2]})
    # A call takes a second here, and so does the rule: one generation fits.
    monkeypatch.setattr(timing, "seconds_of", lambda run: float(run() is not None))
    line = f"gadam --quick --tasks breast_cancer --arms best_of_g --peers --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    tuned = {kind: kept.select(kind=kind, arm="tuned") for kind in ("curves", "tuning", "run")}
    (curves,), (tuning,), runs = ([each.result for each in own] for own in tuned.values())
    assert (curves["looks"][-1], len(runs)) == (8 * 10 * 6, 2)
    assert all(run["test_accuracy"] > 0.8 and run["test_loss"] < 0.6 for run in runs)
    middle = np.median([run["loss"] for run in runs])
    assert middle == pytest.approx(curves["quartiles"][1][-1], rel=1e-3)
    assert np.shape(tuning["losses"]) == (len(tuning["rates"]), 3)
    assert not kept.select(kind="peer", arm="cma_es")  # it is made for fewer parameters
    whole, *searches = (each.result for each in kept.select(kind="peer", arm="sep_cma_es"))
    assert whole["judged"] == whole["setting"]["population"]
    assert (np.shape(whole["losses"]), len(searches)) == ((2, 3), 2)
    text = (tmp_path / "README.md").read_text()
    assert all(part in text for part in ("Gadam, tuned", "separable CMA-ES", "of 1.00 s"))
    pictures = [tmp_path / f"{name}.png" for name in ("curves", "diversity")]
    assert all(path.stat().st_size > 1000 for path in pictures)
    before = (tmp_path / FILE).read_bytes()
    for name in ("run", "search"):
        monkeypatch.setattr(program, name, None)
    assert call(monkeypatch, line) == 0
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_method_finds_a_minimum_and_tells_where(name: str) -> None:
    """Around 3, in two leaves; points without a loss are the worst; judged on its own."""

    def start(key: jax.Array) -> Any:
        start = jax.random.uniform(key, (3,), minval=-1.0)
        return {"a": start[:2], "b": jnp.abs(start[2])}

    def squared(point: Any) -> jax.Array:
        return jnp.sum((point["a"] - 3) ** 2) + (point["b"] - 3) ** 2

    def loss_fn(point: Any, _: Any) -> jax.Array:
        return jnp.where(point["b"] < 0, jnp.nan, squared(point))

    problem = Problem(start, loss_fn, lambda point, _: 7 + squared(point), {})
    task, peer = Task(4, 1, 1, 1.0, lambda key: problem), PEERS[name]
    found = jax.jit(functools.partial(program.search, task, peer, peer.settings[1]))(0, 150)
    assert float(found.loss) == pytest.approx(7, abs=1e-3)
    np.testing.assert_allclose(found.params["a"], [3, 3], atol=0.1)
    assert 7 + float(squared(found.params)) == pytest.approx(float(found.loss), rel=1e-6)


def test_generations_are_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def search(seed: int, generations: int) -> program.Best:
        counted.append(generations)
        return program.Best(jnp.zeros(()), None)

    monkeypatch.setattr(timing, "seconds_of", lambda run: run() is None or 0.001 * counted[-1])
    assert gadam._generations(search, 2.0) == 2000
    assert counted == [1, 1, 4, 16, 20]
    assert gadam._generations(search, 1e-4) == 1
