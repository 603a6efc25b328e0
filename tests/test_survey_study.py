"""The survey study: optimizers, problems, sweeps and the choice of rates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from benchmarks.lab.paths import evaluated
from benchmarks.survey import study as survey_study
from benchmarks.survey.optimizers import DECAYING, ENTRIES, FAMILIES, Entry
from benchmarks.survey.problems import (
    BREAST_CANCER_SPLIT,
    NOISE,
    PROBLEMS,
    SEEN,
    breast_cancer_splits,
)
from benchmarks.survey.study import RATES, TUNING_SEEDS, Scores, Task, choose, scores_of, study


def test_every_optimizer_of_optabs_has_a_row_in_its_family() -> None:
    makers = {
        name: value
        for name, value in vars(optabs).items()
        if getattr(value, "__module__", "").startswith("optabs.optimizers.")
    }
    del makers["nag_eval_params"]
    assert makers.keys() <= ENTRIES.keys()
    assert FAMILIES.keys() == {"adam_absolute", "absolute", "adam", "adaptive", "momentum"}
    # No module may bear the name of one of its functions.
    renamed = {"adam_family": "adam", "gradient_descent": "momentum"}
    for name, maker in makers.items():
        file = maker.__module__.removeprefix("optabs.optimizers.")
        assert renamed.get(file, file) == ENTRIES[name].family


def test_a_decaying_rate_ends_at_0() -> None:
    optimizer = DECAYING["sgd_cosine"].optimizer(0.5, 4)
    state, sizes = optimizer.init(jnp.zeros(())), []
    for _ in range(5):
        update, state = optimizer.update(jnp.ones(()), state)
        sizes.append(-float(update))
    np.testing.assert_allclose(sizes, 0.25 * (1 + np.cos(np.pi * np.arange(5) / 4)), atol=1e-7)


def test_noise_and_sparsity_are_as_declared() -> None:
    key = jax.random.key(0)
    noisy, sparse = PROBLEMS["noisy"](), PROBLEMS["sparse"]()
    params = noisy.start(key)
    feed = noisy.feed(key, 2000)
    np.testing.assert_allclose(np.std(feed), NOISE, rtol=0.02)
    clean = jax.grad(noisy.loss)(params)
    np.testing.assert_allclose(noisy.gradient(params, feed[0]), clean + feed[0], rtol=1e-5)
    seen = sparse.feed(key, 2000)
    np.testing.assert_allclose(np.mean(seen), SEEN, rtol=0.05)
    np.testing.assert_allclose(
        sparse.gradient(params, seen[3]), np.where(seen[3], clean, 0.0), rtol=1e-5
    )


def test_breast_cancer_is_split_once_and_standardised_by_its_training_cases() -> None:
    splits = breast_cancer_splits()
    counts = [len(split.labels) for split in splits]
    assert counts == [BREAST_CANCER_SPLIT[0], np.diff(BREAST_CANCER_SPLIT)[0], 569 - 400]
    np.testing.assert_allclose(splits[0].inputs.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(splits[0].inputs.std(0), 1.0, rtol=1e-4)
    assert np.abs(splits[2].inputs.mean(0)).max() > 0.01
    cases = np.unique(np.concatenate([split.inputs for split in splits]), axis=0)
    assert len(cases) == 569


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_an_epoch_sees_each_training_case_at_most_once(name: str) -> None:
    problem = PROBLEMS[name]()
    feed = np.asarray(problem.feed(jax.random.key(0), 30))
    assert feed.shape[0] == 30
    batches = {"breast_cancer": 300 // 32, "digits": 1300 // 64}[name]
    epoch = feed[:batches].ravel()
    assert len(set(epoch.tolist())) == len(epoch)
    assert not np.array_equal(epoch, feed[batches : 2 * batches].ravel())


def test_a_sweep_is_what_hand_written_loops_give() -> None:
    problem, entry = PROBLEMS["noisy"](), ENTRIES["nag"]
    runs = survey_study.sweep_of(problem, entry, 6)([0.1, 0.3], [0, 4])
    assert runs.losses.shape == (2, 2, 7)
    for row, seed in enumerate([0, 4]):
        start_key, feed_key = jax.random.split(jax.random.key(seed))
        feed = problem.feed(feed_key, 6)
        for column, rate in enumerate([0.1, 0.3]):
            optimizer = optabs.nag(rate)
            params = problem.start(start_key)
            state, losses = optimizer.init(params), [float(problem.loss(params))]
            for item in feed:
                grads = problem.gradient(params, item)
                updates, state = optimizer.update(grads, state, params)
                params = optax.apply_updates(params, updates)
                losses.append(float(problem.loss(optabs.nag_eval_params(state, params))))
            np.testing.assert_allclose(runs.losses[row, column], losses, rtol=1e-5)
            np.testing.assert_allclose(
                runs.params[row, column], evaluated(state, params), rtol=1e-4, atol=1e-6
            )


def test_a_target_is_reached_where_the_loss_stays_below_it() -> None:
    curves = np.ones((6, 41))
    curves[0, 10:] = 0.05  # arrives
    curves[1, 10:] = 0.05
    curves[1, 30] = 0.5  # leaves once more
    curves[2, 40:] = 0.05  # too late to have stayed
    curves[3, 10:] = 0.05
    curves[3, 20] = np.nan
    curves[4, 10:] = 0.05
    curves[4, 5] = 1001.0
    scores = scores_of(curves, share=0.1, steps=80)
    np.testing.assert_array_equal(scores.steps, [20, 62, np.inf, np.inf, np.inf, np.inf])
    np.testing.assert_allclose(scores.final, [0.05, 0.05, 0.525, np.inf, np.inf, 1.0])


def test_the_choice_is_by_medians_and_ties_go_to_the_other_measure() -> None:
    steps = np.array([[9.0, 5.0, 5.0], [9.0, 5.0, 5.0], [1.0, np.inf, 5.0]])
    final = np.array([[1.0, 3.0, 2.0]] * 3)
    assert choose(Scores(steps, final), "steps") == 2
    assert choose(Scores(steps, final), "final") == 0
    never = np.full((3, 3), np.inf)
    assert choose(Scores(never, final), "steps") == 0


def spying(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[float], list[int]]]:
    """Records the rates and seeds of every sweep."""
    sweeps: list[tuple[list[float], list[int]]] = []
    original = survey_study.sweep_of

    def sweep_of(*arguments: Any) -> Any:
        sweep = original(*arguments)

        def spied(rates: Any, seeds: Any) -> Any:
            sweeps.append((list(rates), list(seeds)))
            return sweep(rates, seeds)

        return spied

    monkeypatch.setattr(survey_study, "sweep_of", sweep_of)
    return sweeps


def test_the_choice_reads_no_reported_seed_and_no_test_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = PROBLEMS["breast_cancer"]()
    of_test: list[Any] = []

    def broken(params: Any) -> jax.Array:
        of_test.append(params)
        return jnp.array(0.25)

    problem = problem._replace(accuracy=broken)
    sweeps = spying(monkeypatch)
    task = Task("breast_cancer", "adam", ENTRIES["adam"], 20, (0, 1, 2))
    first = study(task, problem)
    rate = first["results"]["rate"]
    assert sweeps == [(list(RATES), list(TUNING_SEEDS)), ([rate], [0, 1, 2])]
    assert not set(TUNING_SEEDS) & set(task.seeds)
    assert len(of_test) == 1
    assert first["results"]["test_accuracy"] == [0.25] * 3
    other = study(task._replace(seeds=(7, 8)), problem)
    for key in ("rate", "tuning_steps", "tuning_final_loss"):
        assert other["results"][key] == first["results"][key]
    assert other["results"]["final_loss"] != first["results"]["final_loss"][:2]


def test_a_study_compiles_one_program_for_all_rates() -> None:
    rates: list[Any] = []

    def make(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        rates.append(rate)
        return optabs.adam(rate)

    study(Task("saddle", "adam", Entry("adam", "adam", make), 5, (0, 1)), PROBLEMS["saddle"]())
    assert len(rates) == 2  # all rates on the tuning seeds, one on the reported
    assert all(isinstance(rate, jax.core.Tracer) for rate in rates)
