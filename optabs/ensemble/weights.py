"""The weights that DAO-E mixes by, read from a state."""

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import optax

from optabs._tree import find_state
from optabs.ensemble.mixture import DaoEState
from optabs.ensemble.previous import is_kept


@overload
def mixing_weights(
    state: optax.OptState, *, per_leaf: Literal[False] = False
) -> dict[str, jax.Array]: ...


@overload
def mixing_weights(
    state: optax.OptState, *, per_leaf: Literal[True]
) -> dict[str, optax.Params]: ...


def mixing_weights(state: optax.OptState, *, per_leaf: bool = False) -> dict[str, Any]:
    r"""The weights by which DAO-E mixed its experts in the last step.

    .. math:: \bar\alpha_i = \tfrac1L \sum_l \alpha_{il}

    Args:
      state: a state that holds one of :func:`optabs.dao_e`, inside any nesting of optax's
        wrappers.
      per_leaf: return the weights of each leaf, not their mean.

    Returns:
      By the experts' names, float32 [] each, with a sum of 1 (uniform before the first step);
      per leaf, trees like the parameters of such numbers.

    Raises:
      ValueError: for a state that does not hold exactly one of dao_e; per leaf, for one whose
        controller learns nothing or has one set of weights for all leaves.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> optimizer = optax.chain(optax.clip(1.0), optabs.dao_e(1e-3))
      >>> weights = optabs.mixing_weights(optimizer.init({"w": jnp.zeros(3)}))
      >>> {name: float(weight) for name, weight in weights.items()}
      {'adam': 0.25, 'lion': 0.25, 'rmsprop': 0.25, 'sgd': 0.25}
    """
    found = find_state(state, DaoEState, "mixing_weights")
    mixing = found.controller.mixing
    names = sorted(found.experts)
    if not per_leaf:
        return {name: jnp.mean(mixing[..., :, k], axis=-1) for k, name in enumerate(names)}
    previous = found.experts[names[0]].previous
    if isinstance(previous, tuple) and not previous:
        raise ValueError(
            "per_leaf is True, but this controller learns nothing of the leaves; pass "
            "per_leaf=False."
        )
    structure: Any = jax.tree.structure(previous, is_leaf=is_kept)
    rows = mixing.shape[-2]
    if structure.num_leaves != rows:
        raise ValueError(
            "per_leaf is True, but this controller has one set of weights for all leaves; "
            "pass per_leaf=False."
        )
    return {
        name: jax.tree.unflatten(structure, [mixing[..., row, k] for row in range(rows)])
        for k, name in enumerate(names)
    }
