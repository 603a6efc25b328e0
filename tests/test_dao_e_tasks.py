"""The DAO-E study before it runs: tasks, settings, tuning, programs, arms and measures."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_problem import drawn

import optabs
from benchmarks.dao_e import settings
from benchmarks.dao_e.arms import ARMS
from benchmarks.dao_e.program import CEILING, FLOOR, Outcome, measures_of, program_of
from benchmarks.dao_e.study import MAKERS, task_of
from benchmarks.dao_e.tasks_drift import NEW_CLASS
from benchmarks.lab import tasks_data
from benchmarks.lab.tasks import NEED_IMAGES, TASKS, Task
from benchmarks.survey.problems import Split

EMBEDDED = [name for name in MAKERS if name not in NEED_IMAGES]


@functools.cache
def example(name: str) -> tuple[Task, Any, Any, Any]:
    """A task with its start and its first batch."""
    task = task_of(name, pathlib.Path() if name in NEED_IMAGES else None, None)

    @jax.jit
    def begin(train: Any) -> Any:
        first = jax.tree.map(lambda leaf: leaf[0], task.feed(jax.random.key(1), 4))
        return task.batch(train, first)

    shapes, statistics = jax.eval_shape(task.init, jax.random.key(0))
    statistics = jax.tree.map(lambda x: jnp.ones(x.shape), statistics)
    return task, drawn(shapes), statistics, begin(task.train)


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
    grads = jax.device_get(grads)
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
            {case.tobytes() for case in np.asarray(split.inputs)}
            for split in (one.train, one.validation, one.test)
        ]
        assert len(set.union(*cases)) == sum(map(len, cases))


def test_large_images_are_pooled() -> None:
    images = np.arange(28 * 28.0).reshape(1, 28, 28, 1)
    small = tasks_data.halved(images)
    assert small.shape == (1, 14, 14, 1)
    assert small[0, 0, 1, 0] == np.mean([2, 3, 30, 31])


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
    @functools.partial(jax.jit, static_argnums=0)
    def labels(name: str, progress: float) -> tuple[jax.Array, jax.Array]:
        task = task_of(name, None, None)
        # As many places as would be drawn in a hundred steps.
        many = jax.tree.map(jnp.ravel, task.feed(jax.random.key(3), 100))
        now, first = (many._replace(progress=jnp.asarray(at)) for at in (progress, 0.0))
        return task.batch(task.train, now).labels, task.batch(task.train, first).labels

    np.testing.assert_array_equal(*labels("noisy_labels", 0.49))
    noisy, clean = labels("noisy_labels", 0.5)
    np.testing.assert_allclose(np.mean(noisy != clean), 0.4 * 0.9, atol=0.03)
    assert NEW_CLASS not in labels("new_class", 0.49)[0]
    np.testing.assert_allclose(
        np.mean(labels("new_class", 0.5)[0] == NEW_CLASS), 0.1, atol=0.03
    )
    task = task_of("brighter", None, None)
    draws = jax.tree.map(np.asarray, jax.jit(lambda: task.feed(jax.random.key(3), 2))())
    first, second = (jax.tree.map(lambda leaf, at=at: leaf[at], draws) for at in (0, 1))
    batch = jax.jit(task.batch)
    dark = batch(task.train, second._replace(progress=first.progress)).inputs
    np.testing.assert_allclose(batch(task.train, second).inputs - dark, 0.5, atol=1e-6)
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
    optimizer = optabs.adam(0.1)

    @jax.jit
    def step(params: Any, state: Any, noise: jax.Array) -> Any:
        (loss, _), grads = jax.value_and_grad(task.loss_fn, has_aux=True)(params, {}, noise)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, _ = jax.jit(task.init)(start_key)
    state, losses = optimizer.init(params), []
    for noise in np.asarray(task.feed(feed_key, 6)):
        params, state, loss = step(params, state, noise)
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


def test_a_training_by_steps_is_that_of_one_program() -> None:
    task = task_of("softmax", None, 20)
    one, other = (
        program_of(task._replace(by_steps=by_steps), ARMS["adam"], test=True)([0.01], 3)
        for by_steps in (False, True)
    )
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)
    np.testing.assert_allclose(one.validation, other.validation, rtol=1e-4)
    assert one.test is not None
    assert other.test is not None
    np.testing.assert_allclose(one.test, other.test, rtol=1e-4)
