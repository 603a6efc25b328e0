"""Faults of the step: it goes wrong, or another way on another road."""

import itertools

import jax
import jax.numpy as jnp

from broken.registry import each, emitting, fault_for


@fault_for("check_parabola")
def climbs(inner):
    return each(inner, lambda u: -u)


@fault_for("check_rosenbrock")
def never_settles(inner):
    return each(inner, lambda u: 0.1 * jnp.sign(u))


@fault_for("check_matrix")
def transposes(inner):
    return each(inner, jnp.transpose)


@fault_for("check_leaves")
def moves_one_leaf(inner):
    def first_only(updates):
        leaves, structure = jax.tree.flatten(updates)
        return structure.unflatten([leaves[0], *(0 * leaf for leaf in leaves[1:])])

    return emitting(inner, first_only)


@fault_for("check_order_of_leaves_is_free")
def counts_leaves(inner):
    def scaled(updates):
        leaves, structure = jax.tree.flatten(updates)
        return structure.unflatten([i * leaf for i, leaf in enumerate(leaves)])

    return emitting(inner, scaled)


@fault_for("check_split_leaf_changes_nothing", "check_flatten", "check_update_sends_nothing")
def divides_by_norms(inner):
    return each(inner, lambda u: u / jnp.sqrt(jnp.sum(jnp.square(u))))


_CALLS = itertools.count(1)


@fault_for("check_chain", "check_lookahead", "check_multi_steps")
def shares_a_counter(inner):
    return each(inner, lambda u: u * next(_CALLS))


@fault_for("check_checkpoint_continues_bit_for_bit")
def counts_its_calls(inner):
    calls = itertools.count(1)

    def scaled(updates):
        call = next(calls)
        return jax.tree.map(lambda u: call * u, updates)

    return emitting(inner, scaled)


@fault_for("check_flatten_stays_finite", element_wise=False)
def takes_only_matrices(inner):
    return each(inner, lambda u: u if u.ndim == 2 else u * jnp.nan)


@fault_for("check_jit_equals_eager")
def sees_the_trace(inner):
    return each(inner, lambda u: 2 * u if isinstance(u, jax.core.Tracer) else u)


@fault_for("check_vmap_over_params_equals_loop", raises=jax.errors.TracerBoolConversionError)
def branches_on_values(inner):
    return each(inner, lambda u: u if jnp.all(u > 0) else 2 * u)


@fault_for("check_gradient_through_updates")
def stops_gradients(inner):
    return each(inner, jax.lax.stop_gradient)


@fault_for("check_gradient_at_rest")
def takes_a_root(inner):
    return each(inner, lambda u: jnp.sign(u) * jnp.sqrt(jnp.square(u)))


@jax.custom_vjp
def _clipped_in_reverse(x):
    return x


_clipped_in_reverse.defvjp(lambda x: (x, None), lambda _, slope: (jnp.clip(slope, -1, 1),))


@fault_for("check_forward_mode_equals_reverse", raises=TypeError)
def has_only_a_reverse_rule(inner):
    return each(inner, _clipped_in_reverse)


@fault_for("check_nnx_optimizer")
def knows_only_dicts(inner):
    return emitting(
        inner, lambda us: us if isinstance(us, dict) else jax.tree.map(lambda u: 0 * u, us)
    )


@fault_for("check_sharded_equals_single_device")
def sees_the_sharding(inner):
    return each(inner, lambda u: 2 * u if any(jax.typeof(u).sharding.spec) else u)


@fault_for("check_shard_map_of_whole_params")
def sees_manual_axes(inner):
    def twice(u):
        return 2 * u if jax.sharding.get_abstract_mesh().manual_axes else u

    return each(inner, twice)


@fault_for("check_shard_map_of_shards", raises=TypeError)
def branches_to_a_constant(inner):
    def bounded(u):
        return jax.lax.cond(jnp.all(u == 0), lambda: jnp.zeros(u.shape, u.dtype), lambda: u)

    return each(inner, bounded)
