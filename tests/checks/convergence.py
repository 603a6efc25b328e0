"""It arrives at the minimum, at the row's own rate."""

import jax
import optax
from cases import Case
from targets import Target, leaves, matrix, parabola, rosenbrock
from trees import assert_close, trained

from checks.registry import check

STEPS = 30_000


def _arrives(case: Case, rate: float, target: Target) -> None:
    optimizer = case.make(rate)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(target.loss)(params)
        extra = {**case.extra, "value": value}
        updates, state = optimizer.update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def descend(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0][0]

    assert_close(descend(trained(target.start)), target.end, rtol=3e-2, atol=3e-2)


@check()
def check_parabola(case: Case) -> None:
    _arrives(case, case.rate, parabola())


@check()
def check_rosenbrock(case: Case) -> None:
    _arrives(case, case.steep_rate, rosenbrock())


@check()
def check_matrix(case: Case) -> None:
    _arrives(case, case.rate, matrix())


@check()
def check_leaves(case: Case) -> None:
    _arrives(case, case.rate, leaves())
