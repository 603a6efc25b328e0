"""Functions with many local minima, each with its lowest value, 0, at a place of its own."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

NOISE = 1.0  # of a gradient's entry, in root mean square entries of gradients over the box
SCHWEFEL_HIGH = 418.9828872724338  # the highest value of x sin(sqrt(x)) up to 500
STYBLINSKI_LOW = -39.16616570377142

Loss = Callable[[jax.Array], jax.Array]  # float32 [d] -> float32 []


class Function(NamedTuple):
    """A function of any number of variables, as it is defined in the literature."""

    value: Loss
    half_width: float  # of the box around 0 that is searched
    minimum: float  # each coordinate of the point where the function is 0
    shift: float  # the largest, in half-widths, by which the minimum moves; it stays inside

    def placed(self, key: jax.Array, size: int, *, rotated: bool) -> tuple[Loss, jax.Array]:
        r"""The function with its minimum at a random place, and that place.

        .. math:: x \mapsto f(o + R(x - o - s)), \qquad s_m \sim U(-h, h)

        with the minimum's old place :math:`o` and, if `rotated`, an orthogonal matrix
        :math:`R` drawn from the Haar measure, else the identity.
        """
        shift_key, turn_key = jax.random.split(key)
        largest = self.shift * self.half_width
        shift = jax.random.uniform(shift_key, (size,), minval=-largest, maxval=largest)
        place = self.minimum + shift
        turn = jax.random.orthogonal(turn_key, size) if rotated else None

        def value(x: jax.Array) -> jax.Array:
            away = x - place
            return self.value(self.minimum + (away if turn is None else turn @ away))

        return value, place

    def start(self, key: jax.Array, size: int) -> jax.Array:
        """A point of the box, all being equally likely."""
        reach = self.half_width
        return jax.random.uniform(key, (size,), minval=-reach, maxval=reach)


def noisy(value: Loss, key: jax.Array, points: jax.Array) -> Loss:
    r"""The function with a random number added to each entry of its gradients.

    .. math:: x \mapsto f(x) + \langle n_x, x - \mathrm{const}(x) \rangle

    so that values are without it. It is normal, independent from point to point, and as large
    as NOISE times the gradients at `points`, root mean square.
    """
    noise_key, bits_key = jax.random.split(key)
    size = NOISE * jnp.sqrt(jnp.mean(jnp.square(jax.vmap(jax.grad(value))(points))))
    factors = jax.random.bits(bits_key, points.shape[1:]) | 1

    def loss(x: jax.Array) -> jax.Array:
        # The loss has no key of its own: every point is one.
        here = jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * factors, dtype=jnp.uint32)
        noise = size * jax.random.normal(jax.random.fold_in(noise_key, here), x.shape)
        return value(x) + jnp.sum(noise * (x - jax.lax.stop_gradient(x)))

    return loss


def _rastrigin(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * jnp.pi * x)))


def _ackley(x: jax.Array) -> jax.Array:
    # The root has no slope at 0.
    far = jnp.sqrt(jnp.mean(x**2) + 1e-20)
    waves = jnp.mean(jnp.cos(2 * jnp.pi * x))
    return 20 * (1 - jnp.exp(-0.2 * far)) + (jnp.e - jnp.exp(waves))


def _griewank(x: jax.Array) -> jax.Array:
    places = jnp.arange(1, x.size + 1)
    return jnp.sum(x**2) / 4000 + (1 - jnp.prod(jnp.cos(x / jnp.sqrt(places))))


def _schwefel(x: jax.Array) -> jax.Array:
    # Farther out it falls deeper, so beyond its box it is as at the edge, plus a parabola.
    inside = jnp.clip(x, -500.0, 500.0)
    waves = inside * jnp.sin(jnp.sqrt(jnp.abs(inside) + 1e-12))
    return jnp.sum(SCHWEFEL_HIGH - waves) + jnp.sum((x - inside) ** 2)


def _styblinski_tang(x: jax.Array) -> jax.Array:
    return jnp.sum((x**4 - 16 * x**2 + 5 * x) / 2 - STYBLINSKI_LOW)


FUNCTIONS: dict[str, Function] = {
    "rastrigin": Function(_rastrigin, 5.12, 0.0, 0.4),
    "ackley": Function(_ackley, 32.768, 0.0, 0.4),
    "griewank": Function(_griewank, 600.0, 0.0, 0.4),
    "schwefel": Function(_schwefel, 500.0, 420.968746, 0.1),
    "styblinski_tang": Function(_styblinski_tang, 5.0, -2.903534, 0.12),
}
