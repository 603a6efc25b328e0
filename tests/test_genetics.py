"""Gadam's operators: exact in distribution, and defined at their edges."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from trees import params

import optabs
from optabs import genetics

NAN, INF = np.nan, np.inf
DRAWS = 20_000


def assert_frequencies(counts: Any, probabilities: Any) -> None:
    """A chi-square test; its keys are fixed, so it passes always or never."""
    counts, probabilities = np.asarray(counts), np.asarray(probabilities, np.float64)
    expected = counts.sum() * probabilities / probabilities.sum()
    possible = expected > 0
    assert not counts[~possible].any()
    if possible.sum() == 1:
        return
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 0.01


def test_frequencies_that_are_off_are_refused() -> None:
    with pytest.raises(AssertionError):
        assert_frequencies([5_300, 4_700], [0.5, 0.5])
    with pytest.raises(AssertionError):
        assert_frequencies([9_999, 1], [1.0, 0.0])


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([3.0, 1.0, 2.0], [1.0, 0.0, 0.5]),
        ([-4.0, 0.0], [0.0, 1.0]),
        ([7.0, 7.0, 7.0], [0.0, 0.0, 0.0]),
        ([5.0], [0.0]),
        ([NAN, 2.0, INF, 4.0, -INF], [INF, 0.0, INF, 1.0, INF]),
        ([NAN, INF], [INF, INF]),
        ([-3e38, 0.0, 3e38], [0.0, 0.5, 1.0]),
        ([1, 3], [0.0, 1.0]),
    ],
)
def test_losses_are_brought_into_one_range(losses: list[float], wanted: list[float]) -> None:
    ours = jax.jit(genetics.normalize_losses)(jnp.array(losses))
    np.testing.assert_array_equal(ours, np.float32(wanted))


@pytest.mark.parametrize("pressure", [0.0, 1.0, 8.0])
def test_selection_follows_equation_45(pressure: float) -> None:
    losses = np.array([0.3, 2.0, 0.7, 1.1])
    normalized = (losses - 0.3) / 1.7
    wanted = np.exp(-pressure * normalized)
    ours = genetics.selection_probabilities(jnp.float32(losses), pressure)
    np.testing.assert_allclose(ours, wanted / wanted.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([4.0, 4.0], [0.5, 0.5]),
        ([4.0], [1.0]),
        ([1.0, NAN, 1.0, INF], [0.5, 0.0, 0.5, 0.0]),
        ([NAN, 3.0], [0.0, 1.0]),
        ([NAN, INF, -INF, NAN], [0.25] * 4),
    ],
)
def test_selection_at_its_edges(losses: list[float], wanted: list[float]) -> None:
    ours = genetics.selection_probabilities(jnp.array(losses))
    np.testing.assert_array_equal(ours, np.float32(wanted))


def test_parents_are_drawn_as_their_probabilities_say() -> None:
    chances = genetics.selection_probabilities(jnp.array([0.1, NAN, 0.5, 0.9]))
    pairs = np.asarray(genetics.select_parents(jax.random.key(1), chances, DRAWS))
    assert pairs.shape == (DRAWS, 2)
    assert pairs.dtype == np.int32
    for parents in pairs.T:
        assert_frequencies(np.bincount(parents, minlength=4), chances)
    # The two of a pair know nothing of each other.
    both = np.bincount(4 * pairs[:, 0] + pairs[:, 1], minlength=16)
    assert_frequencies(both, np.outer(chances, chances).ravel())


@pytest.mark.parametrize(
    ("loss_a", "loss_b", "share"),
    [
        (0.0, 1.0, 1 / (1 + np.exp(-1))),
        (0.7, 0.2, 1 / (1 + np.exp(0.5))),
        (0.4, 0.4, 0.5),
        (0.0, INF, 1.0),
        (NAN, 1.0, 0.0),
        (INF, NAN, 0.5),
    ],
)
def test_a_child_takes_as_much_as_equation_47_says(
    loss_a: float, loss_b: float, share: float
) -> None:
    a, b = jnp.ones(DRAWS), jnp.zeros(DRAWS)
    child = genetics.crossover(jax.random.key(2), a, b, loss_a, loss_b)
    taken = int(child.sum())
    assert_frequencies([taken, DRAWS - taken], [share, 1 - share])


@pytest.mark.slow
def test_every_entry_comes_from_one_parent_and_nothing_leaks() -> None:
    a = {"w": jnp.full((200, 3), NAN), "n": jnp.arange(50), "b": jnp.ones(70, jnp.bfloat16)}
    b = {"w": jnp.full((200, 3), 2.0), "n": -jnp.arange(50), "b": jnp.zeros(70, jnp.bfloat16)}
    key = jax.random.key(3)
    child = jax.jit(genetics.crossover)(key, a, b, 0.5, 0.5)
    mask = genetics.crossover_mask(key, a, 0.5, 0.5)
    assert jax.tree.map(lambda x: x.dtype, child) == jax.tree.map(lambda x: x.dtype, a)
    for name in a:
        wanted = np.where(mask[name], np.float32(a[name]), np.float32(b[name]))
        np.testing.assert_array_equal(np.float32(child[name]), wanted)
    assert 200 < int(mask["w"].sum()) < 400
    clean = genetics.crossover(key, a, b, NAN, 0.5)
    chex.assert_trees_all_equal(clean, b, strict=True)


def test_leaves_of_one_shape_have_streams_of_their_own() -> None:
    like = {"one": jnp.zeros(100), "other": jnp.zeros(100)}
    key = jax.random.key(4)
    for drawn in (
        genetics.crossover_mask(key, like, 0.0, 0.0),
        genetics.uniform_like(key, like),
        genetics.mutate(key, like, 0.5),
    ):
        assert not np.array_equal(drawn["one"], drawn["other"])
    # Nor is an entry's draw tied to whether it is drawn.
    child = genetics.mutate(key, like["one"], 0.3)
    assert float(child[child != 0].max()) > 0.7


@pytest.mark.parametrize(
    ("chances", "wanted"), [((0.3, 0.2), 0.05), ((0.7, 0.7), 0.0), ((0.0, 0.0), 0.1)]
)
def test_children_of_good_parents_mutate_less(
    chances: tuple[float, float], wanted: float
) -> None:
    np.testing.assert_allclose(genetics.mutation_rate(0.1, *chances), wanted, atol=1e-8)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0])
def test_as_many_entries_mutate_as_equation_48_says(rate: float) -> None:
    before = jnp.full(DRAWS, 5.0)
    child = np.asarray(jax.jit(genetics.mutate)(jax.random.key(5), before, rate))
    renewed = child[child != 5.0]
    assert_frequencies([renewed.size, DRAWS - renewed.size], [rate, 1 - rate])
    if rate:
        assert stats.kstest(renewed, "uniform").pvalue > 0.01


def test_the_draw_is_a_parameter_and_whole_numbers_do_not_mutate() -> None:
    before = {"w": jnp.zeros(DRAWS), "step": jnp.arange(3), "on": jnp.array([True])}

    def drawn(key: jax.Array, like: Any) -> Any:
        return like | {"w": optabs.normal_like(key, like["w"], stddev=2.0)}

    child = genetics.mutate(jax.random.key(6), before, 1.0, drawn)
    assert stats.kstest(np.asarray(child["w"]) / 2, "norm").pvalue > 0.01
    for name in ("step", "on"):
        chex.assert_trees_all_equal(child[name], before[name], strict=True)
    chex.assert_trees_all_equal(
        genetics.mutate(jax.random.key(6), before, 1.0)["step"], before["step"], strict=True
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_stay(dtype: Any) -> None:
    child = genetics.mutate(jax.random.key(7), params(dtype), 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(child)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        (lambda key, like: [like], "sample turned PyTreeDef(*) into PyTreeDef([*]); return a"),
        (
            lambda key, like: like[:2],
            "sample turned float32[3] into float32[2]; return a tree",
        ),
        (lambda key, like: like > 0, "sample turned float32[3] into bool[3]; return a tree"),
    ],
)
def test_draws_of_another_kind_are_refused(sample: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        genetics.mutate(jax.random.key(0), jnp.ones(3), 0.5, sample)


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([3.0, 1.0, 2.0], [1, 2]),
        ([2.0, 1.0, 1.0, 2.0], [1, 2]),
        ([NAN, 5.0, INF, -INF], [1, 0]),
        ([NAN, INF], [0, 1]),
        ([-INF, 1.0, 0.5], [2, 1]),
    ],
)
def test_the_fittest_survive(losses: list[float], wanted: list[int]) -> None:
    ours = genetics.survivors(jnp.array(losses), 2)
    assert ours.dtype == jnp.int32
    assert ours.tolist() == wanted


@pytest.mark.slow
def test_a_population_is_made_by_vmap_and_is_the_loop_over_its_individuals() -> None:
    keys = jax.random.split(jax.random.key(8), 3)
    start = params()
    scaled = jax.vmap(lambda scale: jax.tree.map(lambda leaf: scale * leaf, start))
    a, b = scaled(jnp.arange(1.0, 4.0)), scaled(-jnp.arange(1.0, 4.0))
    losses = jnp.array([0.0, 0.5, 1.0])

    def child(key: jax.Array, a: Any, b: Any, loss: jax.Array) -> Any:
        cross, change = jax.random.split(key)
        return genetics.mutate(change, genetics.crossover(cross, a, b, loss, 0.5), 0.2)

    together = jax.jit(jax.vmap(child))(keys, a, b, losses)
    for index in range(3):
        own_a, own_b = (jax.tree.map(lambda leaf, i=index: leaf[i], each) for each in (a, b))
        alone = jax.jit(child)(keys[index], own_a, own_b, losses[index])
        chex.assert_trees_all_equal(
            jax.tree.map(lambda leaf, i=index: leaf[i], together), alone, strict=True
        )
