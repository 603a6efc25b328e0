"""Faults of update's arguments and of the trees it takes."""

import jax
import jax.numpy as jnp
import optax

from broken.registry import beside, emitting, fault_for


@fault_for("check_unknown_arguments_are_ignored", raises=TypeError)
def refuses_arguments(inner):
    return optax.GradientTransformationExtraArgs(
        inner.init, lambda grads, state, params=None: inner.update(grads, state, params)
    )


@fault_for("check_params_are_optional", raises=ValueError)
def decays(inner):
    return optax.chain(inner, optax.add_decayed_weights(0.1))


@fault_for("check_value_is_optional", raises=KeyError)
def follows_the_loss(inner):
    def update(grads, state, params=None, **extra):
        return jax.tree.map(lambda g: extra["value"] * g, grads), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


@fault_for(
    "check_chain_passes_the_value_on",
    raises=TypeError,
    without_value=False,
    extra={"value": 1.0},
)
def hides_its_argument(inner):
    # A plain GradientTransformation: optax's chain leaves the extra arguments out.
    def update(grads, state, params=None, *, value):
        return inner.update(grads, state, params)

    return optax.GradientTransformation(inner.init, update)


@fault_for("check_empty_trees", raises=TypeError)
def needs_a_leaf(inner):
    def bounded(updates):
        largest = jax.tree.reduce(
            jnp.maximum, jax.tree.map(lambda u: jnp.max(jnp.abs(u)), updates)
        )
        return jax.tree.map(lambda u: u / largest, updates)

    return emitting(inner, bounded)


@fault_for("check_empty_arrays_change_nothing")
def averages_over_leaves(inner):
    def bounded(updates):
        means = [jnp.mean(jnp.abs(u)) for u in jax.tree.leaves(updates)]
        return jax.tree.map(lambda u: u / sum(means), updates)

    return emitting(inner, bounded)


@fault_for("check_python_numbers_are_scalars", raises=AttributeError)
def asks_a_leaf_for_its_dtype(inner):
    def held(params):
        return jax.tree.map(lambda p: jnp.zeros([], p.dtype), params)

    return beside(inner, held, lambda x: x)


@fault_for("check_none_leaves")
def fills_none(inner):
    def filled(updates):
        return jax.tree.map(
            lambda u: 0.0 if u is None else u, updates, is_leaf=lambda u: u is None
        )

    return emitting(inner, filled)


@fault_for("check_masked", "check_partition", raises=TypeError)
def opens_masked_nodes(inner):
    def opened(updates):
        return jax.tree.map(
            lambda u: u + 0.0, updates, is_leaf=lambda u: isinstance(u, optax.MaskedNode)
        )

    return emitting(inner, opened)
