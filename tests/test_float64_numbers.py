"""Under x64, neither the library's constants nor float64 numbers widen float32 leaves."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NAMED, OPTIONS, PARTS, Case
from trees import step

import optabs
from optabs import genetics

ROWS = [*NAMED, *OPTIONS, *PARTS]
# An extent that nothing but the parameters has.
EXTENT = 37
WIDE = re.compile(rf"(f64|c128)\[{EXTENT}")


def params() -> dict[str, jax.Array]:
    narrow = jnp.ones(EXTENT, jnp.bfloat16)
    return {"w": jnp.ones(EXTENT, jnp.float32), "b": narrow, "scale": jnp.float32(1.0)}


def assert_narrow(tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert leaf.dtype.itemsize <= 4, jax.tree_util.keystr(path)


@pytest.mark.parametrize("case", ROWS, ids=str)
@pytest.mark.parametrize("number", [float, np.float64, jnp.float64])
def test_optimizers(case: Case, number: Any) -> None:
    with jax.enable_x64(True):
        numbers = {name: number(value) for name, value in case.numbers.items()}
        for rate in (number(0.1), lambda count: number(0.1) / (1 + count)):
            optimizer = case.make(rate, **numbers)
            state = optimizer.init(params())
            assert_narrow(state)

            def update(grads: Any, state: Any, optimizer: Any = optimizer) -> Any:
                return step(case, optimizer, grads, state, params())

            assert_narrow(jax.eval_shape(update, params(), state))
            assert not WIDE.search(str(jax.make_jaxpr(update)(params(), state)))


def test_a_wide_leaf_has_a_wide_offset() -> None:
    with jax.enable_x64(True):
        mixed = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}
        state = optabs.nag(0.1).init(mixed)
        assert state.offset.dtype == jnp.float64
        eval_params = optabs.nag_eval_params(state, mixed)
        assert [leaf.dtype.name for leaf in eval_params.values()] == ["float32", "float64"]


@pytest.mark.slow
def test_the_rest() -> None:
    key = jax.random.key(0)
    with jax.enable_x64(True):
        narrow = jnp.ones(3, jnp.float32)
        learner = optabs.gadam(population_size=2)
        assert_narrow(learner.init(key, lambda key: narrow)._replace(key=()))
        for optimizer in (optabs.nag(0.1), optabs.nag(np.float64(0.1))):
            state = optimizer.init(narrow)
            assert_narrow(optabs.nag_eval_params(state, narrow))
        assert_narrow(optabs.normal_like(key, narrow, np.float64(0.1)))
        assert_narrow(genetics.normal_around(np.float64(0.1))(key, narrow))
        assert_narrow(genetics.mutate(key, narrow, np.float64(0.5)))
        assert_narrow(genetics.selection_probabilities(narrow))
        for name in ("mse", "mae", "huber", "cosine_distance"):
            assert_narrow(getattr(optabs.losses, name)(narrow, np.ones(3)))
