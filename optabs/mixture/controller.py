"""The controller: the settings, how weights and step multiplier learn, and from what."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optabs._checks import BELOW_ONE, DECAY32, NONNEGATIVE, POSITIVE, check, optional, short
from optabs._numerics import correct_bias, update_moment

MIN_VARIANCE_RATE = 0.02  # the variance of the advantages covers about 50 steps
MAX_SIGNAL = 10.0  # standard deviations; bounds what one step can change
ANNEALING_STEPS = 100.0  # after so many the rates fall like 1 / sqrt(steps)
MIN_ANNEALED = 0.2  # the share of themselves to which they fall: the problem may change
LONG_STEP = 0.02  # in norms of the parameters; shorter ones are seldom too long
SHORT_STEP = 0.005  # the shorter than this, the less should weights shorten it
TOO_FAR = 0.005  # a mean cosine with the trace: that of networks that still learn is near 0
ALIKE = 0.05  # a sum of squared logarithms of lengths: of two, that one is 1.4 times the other
GROWTH = 0.5  # the cosine of steps with the parameters above which they mostly enlarge them
CALM = 0.7  # the share of n below which M tells that little is left to learn
MEDIAN_STEP = 0.05  # of its logarithm; a median, since a few large ones should not tell
FORGETTING = 0.25  # n falls by this power of time where M does not renew it: long runs know it
FIRST_NORMS = 20  # of which the median begins as the geometric mean
SETTLED_NORMS = 40  # after so many it is a median: outliers among the first do not count as n
FEATURE_RATE = 0.03  # of W: the features are up to 3, and there are several
MIN_LOG, MAX_LOG = -7.0, 3.0  # of the multiplier: 1/1000 to 20
PAPER_RATE = 0.05  # of b and W, as published
B1, B2 = 0.9, 0.999  # Adam's usual decays, of the published rule
ROUNDING = 1e-6  # of float32, relative, with room for a sum of several terms
_LEAST = 1e-37  # smaller numbers are flushed to 0 where they divide


class Controller(NamedTuple):
    r"""How DAO-E weighs its experts and how long its steps are, and how both are learned.

    The defaults were chosen by held-out data, mostly of tasks that the study does not report.
    At step :math:`t`, with the gradient :math:`g`, :math:`U_k` is the update of expert
    :math:`k` of :math:`K`,

    .. math:: U_k \leftarrow U_k \min\Big(1, \frac{\mathrm{cap}\,\max(\|\theta\|, 1)}
              {\max(e^c, 1)\,\|U_k\|}\Big), \qquad P_k \leftarrow \gamma P_k + U_k,

    norms taken over the whole tree. For leaf :math:`l` the next gradients tell what an
    expert's last five hundred updates did, :math:`d_{kl} = \langle g_l, P_{kl}\rangle`,

    .. math:: a_{kl} = \sum_j \alpha_{jl} d_{jl} - d_{kl}, \qquad
              \sigma_l^2 \leftarrow \sigma_l^2 + \max(1/t, 0.02)\,
              (\overline{a_l^2} - \sigma_l^2), \qquad
              q_{kl} = \mathrm{clip}(a_{kl} / \sigma_l, \pm 10),
    .. math:: m_{kl} = \ln \|P_{kl}\| - \overline{\ln \|P_l\|}, \qquad
              p_{kl} = q_{kl} - \bar q_l - (1 - y_{kl})\,
              \min\Big(0, \frac{\langle q_l, m_l\rangle}{0.05 + \|m_l\|^2}\Big)\, m_{kl},
    .. math:: b_l \leftarrow (1 - \mathrm{decay})\, b_l + \mathrm{rate}\, h_t\, p_l, \qquad
              W_l \leftarrow (1 - \mathrm{decay})\, W_l + 0.03\, h_t\, p_l \otimes f,
    .. math:: \alpha_l = \mathrm{floor} + (1 - K\,\mathrm{floor})\,
              \mathrm{softmax}(b_l + W_l f), \qquad h_t = \max(0.2, (1 + t/100)^{-1/2}),

    uniform at the start; :math:`W` learns from the features :math:`f` that made the weights
    in question. The multiplier :math:`e^c` of the whole step learns from the gradient's
    cosines with the last mixed step :math:`s = \sum_k \alpha_k U_k` and with its trace,

    .. math:: S \leftarrow \gamma S + s, \qquad
              c \leftarrow \mathrm{clip}\big(c - \mathrm{multiplier\_rate}\, h_t\, [z
              \cos(g, s) + \min(1, \|g\| / M) \cos(g, S) + r], -7, 3\big).

    The step that is best for the next losses alone is shorter than the one that trains best,
    so the shorter it is, the more slowly it shortens further, by its weights (y) and by its
    multiplier (z), unless the last five hundred steps, or a long expert's, went too far:

    .. math:: x = \frac{e^c\, \|s\|}{\max(\|\theta\|, 1)}, \qquad
              v \leftarrow v + \max(1/t, 1 - \gamma)\, (\cos(g, S) - v), \qquad
              u = \mathrm{clip}(v / 0.005, 0, 1)^2,
    .. math:: y_{kl} = \max(u, [m_{kl} > 0]\, u_k, \min(1, x / 0.005)), \qquad
              z = \max(u, \min(1, x / 0.02)^2),

    with :math:`u_k` as :math:`u`, of :math:`\cos(g, P_k)`; :math:`z = 1` unless
    :math:`\cos(g, s) > 0` and :math:`c < 0`, and :math:`y = 1` without a multiplier. And

    .. math:: r = \max\Big(0, 1 - \frac{M}{0.7\, n}\Big)\,
              \max(0, \cos(S, \theta) - 0.5),
    .. math:: M \leftarrow M\, \exp(0.05\, \mathrm{sign}(\|g\| - M)), \qquad
              n \leftarrow \max\big((1 - \tfrac{1}{4t})\, n, M\big):

    steps that mostly enlarge the parameters, when gradients have become small, make a
    network surer of what it has learned by heart, and shorten. The norms' running median
    :math:`M` begins as the geometric mean of the first twenty. :math:`n` is :math:`M` until
    the fortieth, and then the largest :math:`M`, forgotten like :math:`t^{-1/4}`; its
    :math:`t` counts the gradients but those of 0, which have :math:`r = 0`. A loss whose
    scale falls is taken for one that is learned. :math:`s` and :math:`S` are kept in bfloat16
    and thinned: of a leaf of :math:`N` entries every
    :math:`\max(1, \min(16, \lfloor N / 2048 \rfloor))`-th along its longest axis that one
    device has whole. From these entries cosines and :math:`x` are estimated, and
    :math:`d` and :math:`\|P\|` from those that are kept of :math:`P`. An expert with
    :math:`d_{kl} = 0`, as one that made no update, is left out of the means over experts, and
    its :math:`b` only decays; in a step with products that are not finite nothing is learned
    of the weights. The mean of :math:`b` over the experts is taken away.

    Attributes:
      cap: of an expert's update, above 0, in units of :math:`\max(\|\theta\|, 1)`; None
        for no cap.
      floor: the least weight of an expert, in [0, 1/K).
      rate: of b, above or equal to 0. None freezes the weights: uniform.
      decay: of b and W in every step, in [0, 1).
      gamma: :math:`\gamma` in [0, 1), of the traces; 0 for the last update alone. A few
        hundred steps of memory see what long steps gain through the noise of mini-batches.
      multiplier_rate: of c, above or equal to 0. None: no multiplier.

    Examples:
      >>> import optabs
      >>> optabs.Controller.paper().gamma
      0.0

    Source: DAO-E, eqs. 1 and 2; hypergradient descent, Baydin et al., arXiv 1703.04782.
    """

    cap: ArrayLike | None = 0.05
    floor: ArrayLike = 0.01
    rate: ArrayLike | None = 0.15
    decay: ArrayLike = 0.003
    gamma: ArrayLike = 0.998
    multiplier_rate: ArrayLike | None = 1.0

    @classmethod
    def paper(cls) -> "Controller":
        """As published: one set of weights for all leaves, learned by Adam from the last
        update alone, b at 0.05 (`rate`) and W at 0.05; no cap, no floor, no multiplier, and
        no eps in this Adam, so that the loss's scale does not matter."""
        return _Paper(None, 0.0, PAPER_RATE, 0.0, 0.0, None)

    @classmethod
    def uniform(cls) -> "Controller":
        """Equal weights at all times, no cap and no multiplier: the baseline."""
        return Controller(rate=None, cap=None, multiplier_rate=None)


class _Paper(Controller):
    """One set of weights, and b and W by Adam on the hypergradient itself."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Paper) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((_Paper, *self))


def check_controller(controller: Controller, experts: int) -> None:
    """Raises ValueError for settings out of their range."""
    if not isinstance(controller, Controller):
        raise ValueError(f"controller is {short(controller)}; pass an optabs.Controller(...).")
    check(optional(POSITIVE), cap=controller.cap)
    check(BELOW_ONE, floor=controller.floor, decay=controller.decay)
    check(DECAY32, gamma=controller.gamma)
    check(
        optional(NONNEGATIVE), rate=controller.rate, multiplier_rate=controller.multiplier_rate
    )
    floor: Any = controller.floor
    if not isinstance(floor, jax.Array) and floor * experts >= 1:
        raise ValueError(
            f"floor is {floor!r} for {experts} experts; pass a number below 1/{experts}."
        )


class ControllerState(NamedTuple):
    """What the controller knows, for R sets of weights, K experts and n features."""

    weights: jax.Array  # float32 [R, K]: those of the last step
    matrix: Any  # float32 [R, K, 1 + n]: b, W; () where nothing is learned, as all below
    deviation: Any  # float32 [R]: sigma; () as published
    moments: Any  # as published two arrays like matrix, the second a root; else ()
    inputs: Any  # float32 [1 + n]: 1 and the features that made the weights
    known: Any  # bool [1 + n]: which of these were there


def init(controller: Controller, leaves: int, experts: int, inputs: int) -> ControllerState:
    """Uniform weights; `inputs` is 1 + n, or 0 where nothing is learned."""
    published = isinstance(controller, _Paper)
    rows = 1 if published else max(leaves, 1)
    weights = jnp.full((rows, experts), 1 / experts, jnp.float32)
    if not inputs:
        return ControllerState(weights, *[()] * 5)

    def matrix() -> jax.Array:
        return jnp.zeros((rows, experts, inputs), jnp.float32)

    return ControllerState(
        weights=weights,
        matrix=matrix(),
        deviation=() if published else jnp.zeros(rows, jnp.float32),
        moments=(matrix(), matrix()) if published else (),
        inputs=jnp.zeros(inputs, jnp.float32),
        known=jnp.zeros(inputs, bool),
    )


def learn(
    controller: Controller,
    state: ControllerState,
    products: jax.Array,
    steps: jax.Array,
    norms: jax.Array,
    share: jax.Array | None,
) -> ControllerState:
    """The state after the next gradient.

    `products` are d, `norms` the traces', in any unit that a leaf's have in common: float32
    [L, K]. `share` are the larger of u, and each u_k, and min(1, x / 0.005): y of short
    experts is the first, of long ones the larger of it and their own; None: 1.
    """
    published = isinstance(controller, _Paper)
    if published:
        products = jnp.sum(products, axis=0, keepdims=True)
    valid = jnp.all(jnp.isfinite(products)) & (steps > 0)
    products = jnp.where(valid, products, 0.0)
    if not products.size:
        return state
    given = controller, state, products, steps
    learned = _published_rule(*given) if published else _relative_rule(*given, norms, share)
    return jax.tree.map(lambda new, old: jnp.where(valid, new, old), learned, state)


def update_weights(
    controller: Controller, state: ControllerState, features: jax.Array, known: jax.Array
) -> ControllerState:
    """The state with the next step's weights, from features, float32 [n], known or not."""
    inputs = jnp.concatenate([jnp.ones(1, jnp.float32), features])
    shares = jax.nn.softmax(state.matrix @ inputs, axis=1)
    # Written so that it is exactly 1 for a single expert, and 1/K where the shares are.
    weights = shares + controller.floor * (1 - shares.shape[1] * shares)
    known = jnp.concatenate([jnp.ones(1, bool), known])
    return state._replace(weights=weights.astype(jnp.float32), inputs=inputs, known=known)


def _relative_rule(
    controller: Controller,
    state: ControllerState,
    products: jax.Array,
    steps: jax.Array,
    norms: jax.Array,
    share: jax.Array | None,
) -> ControllerState:
    advantage = jnp.sum(state.weights * products, axis=1, keepdims=True) - products
    largest = jnp.max(jnp.abs(products), axis=1)
    unit = _safe_scale(jnp.maximum(largest, state.deviation))
    # A product of 0 is that of an expert that made no update: it tells nothing.
    judged = products != 0
    advantage = jnp.where(judged, advantage / unit[:, None], 0)
    rate = jnp.maximum(1 / jnp.maximum(steps, 1).astype(jnp.float32), MIN_VARIANCE_RATE)
    variance = jnp.square(state.deviation / unit)
    squares = _mean_of_judged(jnp.square(advantage), judged)[:, 0]
    variance = variance + rate * (squares - variance)
    # An advantage of a millionth of the products is their rounding error.
    scale = _safe_sqrt(variance + jnp.square(ROUNDING * largest / unit))
    signal = advantage / jnp.where(scale > 0, scale, 1)[:, None]
    signal = jnp.clip(signal, -MAX_SIGNAL, MAX_SIGNAL)
    signal = jnp.where(judged, signal - _mean_of_judged(signal, judged), 0)
    if share is not None:
        along = _shortening(signal, norms, judged)  # below 0 of the long ones
        of_long = jnp.maximum(share[0], share[1:])[None, :]
        signal = signal - (1 - jnp.where(along < 0, of_long, share[0])) * along
    step = signal[:, :, None] * state.inputs[None, None, :]
    step = _rates(controller, state, FEATURE_RATE, _annealing(steps)) * step
    return state._replace(
        matrix=_moved(state, controller.decay, step), deviation=unit * _safe_sqrt(variance)
    )


def _shortening(signal: jax.Array, norms: jax.Array, judged: jax.Array) -> jax.Array:
    """What of a signal goes along the logarithms of lengths, where it wants shorter steps."""
    judged = judged & jnp.isfinite(norms)
    logs = jnp.where(judged, jnp.log(jnp.where(judged, norms, 1)), 0)
    logs = jnp.where(judged, logs - _mean_of_judged(logs, judged), 0)
    both, own = (jnp.sum(logs * each, axis=1, keepdims=True) for each in (signal, logs))
    return jnp.minimum(both / (ALIKE + own), 0) * logs


def _published_rule(
    controller: Controller, state: ControllerState, products: jax.Array, steps: jax.Array
) -> ControllerState:
    mean = jnp.sum(state.weights * products, axis=1, keepdims=True)
    ascent = (state.weights * (mean - products))[:, :, None] * state.inputs[None, None, :]
    known = state.known[None, None, :] & (products != 0)[:, :, None]
    first, second = state.moments
    unit = _safe_scale(jnp.maximum(jnp.abs(ascent), second))
    square = update_moment(jnp.square(second / unit), jnp.square(ascent / unit), B2)
    first = jnp.where(known, update_moment(first, ascent, B1), first)
    second = jnp.where(known, unit * _safe_sqrt(square), second)
    steps = jnp.maximum(steps, 1)
    size = second * jnp.sqrt(correct_bias(jnp.ones([], jnp.float32), B2, steps))
    nonzero = known & (size > _LEAST)
    step = jnp.where(nonzero, correct_bias(first, B1, steps) / jnp.where(nonzero, size, 1), 0)
    step = _rates(controller, state, PAPER_RATE, 1.0) * step
    return state._replace(
        matrix=_moved(state, controller.decay, step), moments=(first, second)
    )


def _rates(
    controller: Controller, state: ControllerState, of_features: float, share: ArrayLike
) -> jax.Array:
    """Of b and each column of W, 0 where its feature was not known: float32 [1, 1, 1 + n]."""
    is_bias = jnp.arange(state.inputs.shape[0]) == 0
    rates = jnp.where(is_bias, jnp.asarray(controller.rate), of_features) * share
    return (rates * state.known)[None, None, :]


def _moved(state: ControllerState, decay: ArrayLike, step: jax.Array) -> jax.Array:
    """b and W after a step, with a mean of b of 0 over the experts."""
    matrix = (1 - jnp.asarray(decay)) * state.matrix + step
    bias = matrix[:, :, :1] - jnp.mean(matrix[:, :, :1], axis=1, keepdims=True)
    return jnp.concatenate([bias, matrix[:, :, 1:]], axis=2).astype(jnp.float32)


def _mean_of_judged(numbers: jax.Array, judged: jax.Array) -> jax.Array:
    """Over the experts that are judged; the numbers of the others are 0."""
    count = jnp.maximum(jnp.sum(judged, axis=1, keepdims=True), 1)
    return jnp.sum(numbers, axis=1, keepdims=True) / count


def _annealing(steps: jax.Array) -> jax.Array:
    """The share of the rates that is left after so many steps."""
    share = jax.lax.rsqrt(1 + steps.astype(jnp.float32) / ANNEALING_STEPS)
    return jnp.maximum(share, MIN_ANNEALED)


def _safe_scale(size: jax.Array) -> jax.Array:
    """What to divide by before squaring: the loss may have any scale that float32 has."""
    return jax.lax.stop_gradient(jnp.where(size > _LEAST, size, 1))


def _safe_sqrt(square: jax.Array) -> jax.Array:
    """Its square root, with a slope of 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def weigh_norm(norm: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A gradient's norm over M, at most 1; what r has beside the cosine, float32 []; and what
    is kept of norms, M, n and of how many they are: float32 [3]."""
    # A norm has no finite slope at 0, and a huge norm is not finite itself.
    norm = jax.lax.stop_gradient(jnp.minimum(norm, 1e38))
    median, high, number = kept
    some, known = norm > _LEAST, median > 0
    # A difference of logarithms: the ratio itself may be more than float32 has.
    distance = jnp.log(jnp.where(some, norm, 1)) - jnp.log(jnp.where(known, median, 1))
    number = number + 1
    first = number <= FIRST_NORMS
    moved = jnp.where(first, distance / number, MEDIAN_STEP * jnp.sign(distance))
    median = jnp.where(known, median * jnp.exp(moved), norm)
    high = jnp.maximum((1 - FORGETTING / number) * high, median)
    high = jnp.where(number <= SETTLED_NORMS, median, high)
    kept = jnp.where(some, jnp.stack([median, high, number]), kept)
    median, high = jnp.maximum(kept[:2], _LEAST)
    calm = jnp.maximum(jnp.where(some, 1 - median / high / CALM, 0.0), 0.0)
    return jnp.minimum(norm / median, 1.0), calm, kept


def shares(
    controller: Controller,
    means: jax.Array,
    cosines: jax.Array,
    length: jax.Array,
    steps: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """v and `share` as `learn` takes it, float32 [1 + K], or [1] where no weights are learned;
    and z: []. `cosines` are the gradient's with S and with each P, and `length` is x."""
    rate = jnp.maximum(1 / jnp.maximum(steps, 1), 1 - jnp.asarray(controller.gamma))
    means = means + rate.astype(jnp.float32) * (cosines - means)
    far = jnp.square(jnp.clip(means / TOO_FAR, 0.0, 1.0))

    def of(far: jax.Array, long: float, power: int) -> jax.Array:  # 1 of NaN
        return jnp.maximum(far, jnp.where(length < long, length / long, 1.0) ** power)

    return means, of(far, SHORT_STEP, 1), of(far[0], LONG_STEP, 2)


def update_multiplier(
    controller: Controller,
    log_multiplier: jax.Array,
    cosines: jax.Array,
    share: jax.Array,
    growth: jax.Array,
    weight: jax.Array,
    calm: jax.Array,
    steps: jax.Array,
) -> jax.Array:
    """c after the next gradient: float32 [].

    `cosines` are float32 [2], the gradient's with s and S, `share` is z, `growth` the cosine
    of S with the parameters, `weight` and `calm` are what `weigh_norm` returns.
    """
    slower = (cosines[0] > 0) & (log_multiplier < 0)
    fall = cosines[0] * jnp.where(slower, share, 1.0) + weight * cosines[1]
    fall = fall + calm * jnp.maximum(growth - GROWTH, 0.0)
    rate = jnp.asarray(controller.multiplier_rate) * _annealing(steps)
    return jnp.clip(log_multiplier - rate * fall, MIN_LOG, MAX_LOG).astype(jnp.float32)
