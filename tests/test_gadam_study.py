"""The study of Gadam: what arms spend, the choice of rates, programs and alignment."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from benchmarks.gadam import alignment, study
from benchmarks.gadam.arms import (
    FUNCTION_ARMS,
    FUNCTION_TRIALS,
    NETWORK_ARMS,
    NETWORK_TRIALS,
    Alone,
    Arm,
    Rule,
    count_of,
)
from benchmarks.gadam.program import Outcome, program_of
from benchmarks.gadam.tasks import Problem, Task, function_task, network_task, spread_like
from optabs import genetics

SMALL = Rule("small", 2, 0.1, "unit")


def counted() -> tuple[Task, dict[str, int]]:
    """A parabola that counts its evaluations, and what it has counted."""
    counts = {"gradients": 0, "losses": 0}

    def count(name: str) -> None:
        def add(x: Any) -> None:
            counts[name] += 1

        return add

    @jax.custom_vjp
    def learned(x: jax.Array) -> jax.Array:
        return jnp.sum(x**2)

    def forward(x: jax.Array) -> Any:
        return learned(x), x

    def backward(x: jax.Array, slope: jax.Array) -> Any:
        jax.debug.callback(count("gradients"), x)
        return (2 * slope * x,)

    learned.defvjp(forward, backward)

    def judged(x: jax.Array, _: Any) -> jax.Array:
        jax.debug.callback(count("losses"), x)
        return jnp.sum(x**2)

    problem = Problem(
        lambda key: jax.random.normal(key, (2,)),
        lambda x, _: learned(x), None, None, judged, None, {"unit": genetics.uniform_like},
    )  # fmt: skip
    return Task("counted", 3, 8, 1, 1.0, lambda key: problem), counts


@pytest.mark.parametrize(
    "arm",
    [Alone("best"), Alone("restarts", 3), SMALL, SMALL._replace(relearn=False)],
    ids=["best", "restarts", "relearn", "once"],
)
def test_an_arm_spends_what_is_counted(monkeypatch: pytest.MonkeyPatch, arm: Arm) -> None:
    monkeypatch.setattr("benchmarks.gadam.program.TOGETHER", 1)
    task, counts = counted()
    outcome = program_of(task, arm)([1e-2], [0])
    jax.effects_barrier()
    wanted = count_of(arm, units=task.units, epochs=task.epochs, steps=task.steps)
    assert counts == wanted._asdict()
    assert wanted.gradients <= task.units * task.epochs
    assert outcome.curve.shape[0] == 1


@pytest.mark.parametrize(
    "arms", [FUNCTION_ARMS | FUNCTION_TRIALS, NETWORK_ARMS | NETWORK_TRIALS]
)
def test_no_arm_spends_more_gradients_than_the_best_of_g(arms: dict[str, Arm]) -> None:
    units, epochs = (16, 2000) if "draw_near" in arms else (8, 40)
    spent = {
        name: count_of(arm, units=units, epochs=epochs, steps=7).gradients
        for name, arm in arms.items()
    }
    assert spent["best_of_g"] == units * epochs * 7
    assert all(
        0.9 * spent["best_of_g"] <= each <= spent["best_of_g"] for each in spent.values()
    )
    assert len({arm.label for arm in arms.values()}) == len(arms)


def test_the_best_of_g_is_what_optax_loops_give() -> None:
    task = function_task("ackley", 3, "shifted", units=4, steps=10)
    arm = Alone("best")
    rate = 1e-2
    (curve,) = program_of(task, arm)([rate], [5]).curve
    pose_key, run_key = jax.random.split(jax.random.key(5))
    problem, optimizer = task.pose(pose_key), optabs.adam(rate * task.scale)
    start_key = jax.random.split(run_key, 1)[0]
    starts = optabs.gadam(optimizer, task.units).init(start_key, problem.init_fn).params

    @jax.jit
    def step(x: jax.Array, state: Any) -> Any:
        slope = jax.grad(problem.loss_fn)(x, None)
        updates, state = optimizer.update(slope, state, x)
        x = optax.apply_updates(x, updates)
        return x, state, problem.judge(x, None)

    best = np.full(10, np.inf)
    for x in starts:
        state = optimizer.init(x)
        for number in range(10):
            x, state, loss = step(x, state)
            best[number] = min(best[number], float(loss))
    np.testing.assert_allclose(curve, np.minimum.accumulate(best), rtol=1e-3)


def test_a_population_improves_and_tells_its_lineage() -> None:
    task = function_task("rastrigin", 4, "rotated", units=6, steps=40)
    arm = Rule("rule", 4, 0.1, "mixed", relearn=False)
    outcome = program_of(task, arm)([3e-3, 1e-2], [0, 1])
    assert outcome.curve.shape == (2, arm.generations(40))
    assert (np.diff(outcome.curve, axis=1) <= 0).all()
    assert outcome.lineage is not None
    assert outcome.lineage.parents.shape == (2, 9, 6, 2)
    assert (outcome.lineage.diversity > 0).all()
    for seed, params, loss in zip([0, 1], outcome.params, outcome.curve[:, -1], strict=True):
        problem = task.pose(jax.random.split(jax.random.key(seed))[0])
        np.testing.assert_allclose(problem.judge(params, None), loss, rtol=1e-4)


@pytest.mark.slow
def test_a_network_learns_under_every_option_of_a_rule() -> None:
    task = network_task("breast_cancer", units=3, epochs=4)
    arm = Rule("rule", 1, 0.01, "spread", shared=0.1, aligned=True, inheritance="fresh")
    outcome = program_of(task, arm)([1e-2], [0])
    assert outcome.curve.shape == (1, 2)
    assert outcome.curve[0, -1] < 0.5  # of log 2 at the start
    assert task.test is not None
    loss, accuracy = jax.vmap(task.test)(outcome.params)
    assert accuracy.shape == (1,)
    assert float(accuracy[0]) > 0.8
    assert float(loss[0]) < 0.6


def test_a_draw_has_the_mean_and_the_spread_of_its_leaf() -> None:
    leaf = 3 + 2 * jax.random.normal(jax.random.key(0), (5000,))
    drawn = spread_like(jax.random.key(1), {"w": leaf, "b": jnp.zeros(3)})
    np.testing.assert_allclose([drawn["w"].mean(), drawn["w"].std()], [3, 2], rtol=0.05)
    np.testing.assert_array_equal(drawn["b"], jnp.zeros(3))


@pytest.mark.slow
def test_alignment_undoes_a_shuffle_and_changes_no_output() -> None:
    task = network_task("breast_cancer", units=3, epochs=4)
    problem = task.pose(jax.random.key(0))
    one = problem.init_fn(jax.random.key(1))
    order = jax.random.permutation(jax.random.key(2), 16)
    optimizer = optabs.adam(1e-2)
    slopes = jax.jit(jax.grad(problem.loss_fn))(one, problem.validation)
    _, opt_state = optimizer.update(slopes, optimizer.init(one), one)
    shuffled, moved = alignment.reordered((one, opt_state), like=one, order=order)
    other = problem.init_fn(jax.random.key(3))
    units = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, shuffled, other)
    states = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), opt_state, moved, optimizer.init(other)
    )
    learner = optabs.gadam(optimizer, 3)
    state = learner.init(jax.random.key(4), problem.init_fn)
    state = state._replace(params=units, opt_state=states)
    after = jax.jit(alignment.aligned)(state)
    judged = jax.jit(jax.vmap(lambda params: problem.judge(params, problem.validation)))
    np.testing.assert_allclose(judged(after.params), judged(state.params), rtol=1e-5)
    for tree, wanted in ((after.params, one), (after.opt_state, opt_state)):
        jax.tree.map(
            lambda leaf, want: np.testing.assert_array_equal(leaf[1], want), tree, wanted
        )
    kernel = state.params["layers"][0]["kernel"]
    assert not np.array_equal(kernel[1], kernel[0])
    assert not np.array_equal(after.params["layers"][0]["kernel"][2], kernel[2])


def test_a_matching_uses_every_column_once() -> None:
    likeness = jnp.array([[0.9, 0.8, 0.0], [1.0, 0.1, 0.0], [0.5, 0.7, 0.2]])
    assert alignment.matching(likeness).tolist() == [1, 0, 2]


def test_rates_are_chosen_by_the_median_and_extended_at_an_edge() -> None:
    asked: list[tuple[list[float], list[int]]] = []

    def program_with(best: float) -> study.Program:
        def program(rates: Sequence[float], seeds: Sequence[int]) -> Outcome:
            asked.append((list(rates), list(seeds)))
            losses = np.abs(np.log(np.asarray(rates) / best))
            # One tuning seed in three says the opposite, much louder.
            odd = np.asarray(seeds) == study.TUNING_SEEDS[0]
            return Outcome(np.where(odd, -100 * losses, losses)[:, None], None, None)

        return program

    for best, wanted in ((1e-2, 0), (1e-3, 0), (3e-4, 1), (1e-5, 2), (1e-1, 1), (5.0, 2)):
        asked.clear()
        rates, losses = study.tune(program_with(best))
        assert len(asked) == 1 + wanted
        assert rates == sorted(rates)
        assert losses.shape == (len(study.GRID) + wanted, len(study.TUNING_SEEDS))
        assert {seed for _, seeds in asked for seed in seeds} == set(study.TUNING_SEEDS)
        nearest = min(rates, key=lambda rate: abs(np.log(rate / best)))
        assert rates[study.chosen(losses)] == nearest


def test_a_curve_knows_what_was_spent() -> None:
    task = function_task("ackley", 3, "shifted", units=4, steps=40)
    assert study.spent_at(Alone("best"), task, 40).tolist() == list(range(4, 164, 4))
    assert study.spent_at(SMALL, task, 10).tolist() == list(range(16, 176, 16))
    once = SMALL._replace(relearn=False)
    assert study.spent_at(once, task, 19).tolist() == list(range(16, 168, 8))
