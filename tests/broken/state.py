"""Faults of init and of the state."""

import jax
import jax.numpy as jnp
import optax

from broken.registry import beside, fault_for, starting


@fault_for("check_state_follows_auto_mesh", "check_state_follows_explicit_mesh")
def forgets_the_sharding(inner):
    return starting(
        inner, lambda params, state: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    )


@fault_for("check_init_takes_abstract_params", raises=TypeError)
def computes_at_init(inner):
    return beside(
        inner, lambda params: jax.tree.map(lambda p: 0 * jnp.abs(p), params), lambda x: x
    )


@fault_for("check_init_reads_no_values")
def multiplies_params_by_zero(inner):
    return beside(inner, lambda params: jax.tree.map(lambda p: 0 * p, params), lambda x: x)


@fault_for("check_buffers_are_apart")
def holds_the_params(inner):
    return beside(inner, lambda params: params, lambda held: held)


@fault_for("check_donation", raises=UserWarning)
def returns_another_state(inner):
    return beside(
        inner, lambda params: jnp.zeros([7]), lambda held: held[:3].astype(jnp.bfloat16)
    )


@fault_for("check_moments_are_found")
def has_no_names(inner):
    def update(grads, state, params=None, **extra):
        named = jax.tree.structure(inner.init(grads)).unflatten(state)
        updates, named = inner.update(grads, named, params, **extra)
        return updates, jax.tree.leaves(named)

    return optax.GradientTransformationExtraArgs(
        lambda params: jax.tree.leaves(inner.init(params)), update
    )


@fault_for("check_params_in_state_are_mapped")
def keeps_an_undeclared_copy(inner):
    return beside(inner, lambda params: jax.tree.map(jnp.zeros_like, params), lambda x: x)
