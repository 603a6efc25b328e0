"""It trains a flax model like any optax optimizer."""

import jax.numpy as jnp
import optax
from cases import Case
from flax import nnx
from trees import assert_close

from checks.registry import check


@check()
def check_nnx_optimizer(case: Case) -> None:
    model = nnx.Linear(2, 3, param_dtype=jnp.dtype(case.dtype), rngs=nnx.Rngs(0))
    transformation = case.make()
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    plain = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    state = transformation.init(plain)
    batch = jnp.array([[1.0, -2.0], [0.5, 1.5]])

    def loss(model):
        return jnp.mean(jnp.square(model(batch) - 1))

    for _ in range(2):
        value, grads = nnx.value_and_grad(loss)(model)
        extra = {**case.extra, "value": value}
        pure = nnx.to_pure_dict(grads)
        updates, state = transformation.update(pure, state, plain, **extra)
        plain = optax.apply_updates(plain, updates)
        optimizer.update(model, grads, **extra)
    trained = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_close(trained, plain, rtol=1e-5, atol=1e-6)
    assert int(optimizer.step[...]) == 2
