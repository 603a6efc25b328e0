"""What mutated entries become: normal around what is there, or one of several draws."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from trees import params

from optabs import genetics

KEY, DRAWS = jax.random.key(12), 20_000


@pytest.mark.parametrize("stddev", [0.1, 3.0])
def test_normal_around_what_is_there(stddev: float) -> None:
    there = jnp.linspace(-50.0, 50.0, DRAWS)
    drawn = np.asarray(jax.jit(genetics.normal_around(stddev))(KEY, there)) - there
    assert stats.kstest(drawn / stddev, "norm").pvalue > 0.01
    assert stats.kstest(drawn / (1.05 * stddev), "norm").pvalue < 0.01  # the test can fail
    assert abs(np.corrcoef(drawn, there)[0, 1]) < 0.02


def test_a_normal_draw_of_no_width_changes_nothing() -> None:
    chex.assert_trees_all_equal(
        genetics.normal_around(0.0)(KEY, params()), params(), strict=True
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_and_whole_numbers_stay(dtype: str) -> None:
    there = {"w": jnp.ones((40, 5), dtype), "n": jnp.arange(4), "on": jnp.array([True])}
    for sample in (
        genetics.normal_around(0.5),
        genetics.normal_around(jnp.float32(0.5)),
        genetics.either(genetics.uniform_like, genetics.normal_around(0.5)),
    ):
        drawn = sample(KEY, there)
        assert drawn["w"].dtype == dtype
        assert len(np.unique(np.float32(drawn["w"]))) > 20
        for name in ("n", "on"):
            chex.assert_trees_all_equal(drawn[name], there[name], strict=True)


def constant(value: float) -> Any:
    return lambda key, like: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), like)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_of_several_draws_is_as_probable(count: int) -> None:
    sample = genetics.either(*map(constant, range(count)))
    there = {"a": jnp.zeros(DRAWS), "b": jnp.zeros(DRAWS)}
    drawn = jax.jit(sample)(KEY, there)
    for leaf in drawn.values():
        counts = np.bincount(np.asarray(leaf, int), minlength=count)
        assert len(counts) == count
        assert count == 1 or stats.chisquare(counts).pvalue > 0.01
    if count > 1:  # the two leaves have streams of their own
        assert not np.array_equal(drawn["a"], drawn["b"])
        both = np.bincount(
            np.asarray(count * drawn["a"] + drawn["b"], int), minlength=count**2
        )
        assert stats.chisquare(both).pvalue > 0.01


def test_either_draws_as_its_parts_do_and_independently_of_the_choice() -> None:
    sample = genetics.either(genetics.uniform_like, genetics.normal_around(1.0))
    drawn = np.asarray(sample(KEY, jnp.full(DRAWS, 100.0)))
    near = drawn[drawn > 50] - 100
    assert stats.kstest(near, "norm").pvalue > 0.01
    assert stats.kstest(drawn[drawn < 50], "uniform").pvalue > 0.01
    counts = [near.size, DRAWS - near.size]
    assert stats.chisquare(counts).pvalue > 0.01


def test_several_of_one_kind_draw_differently() -> None:
    seen = []

    def watched(key: jax.Array, like: Any) -> Any:
        seen.append(np.asarray(jax.random.key_data(key)).tolist())
        return genetics.uniform_like(key, like)

    genetics.either(watched, watched)(KEY, jnp.zeros(3))
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: genetics.normal_around(-1.0), "stddev is -1.0; pass a finite number that is"),
        (lambda: genetics.either(), "samples is (); pass functions (key, params) -> a tree l"),
        (lambda: genetics.either(1.0), "samples is (1.0,); pass functions (key, params) -> a"),
        (
            lambda: genetics.either(lambda key, like: like[:2])(KEY, jnp.ones(3)),
            "samples turned float32[3] into float32[2]; return a tree like params",
        ),
        (
            lambda: genetics.either(constant(1), lambda key, like: like > 0)(KEY, jnp.ones(3)),
            "samples turned float32[3] into bool[3]; return a tree like params",
        ),
    ],
)
def test_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()
