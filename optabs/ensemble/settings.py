"""How the controller weighs and learns: its settings, and which of them are in range."""

from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.typing import ArrayLike

from optabs._checks import BELOW_ONE, NONNEGATIVE, POSITIVE, SHARE, check, optional

Rule = Literal["relative", "adam"]


class Controller(NamedTuple):
    r"""How DAO-E weighs its experts, and how that is learned.

    The defaults are those that did best in the study.

    .. math:: \alpha_l = \varphi + (1 - K\varphi)\, \mathrm{softmax}(b_l + W_l f)

    for leaf :math:`l` of the parameters, :math:`K` experts and features :math:`f`; uniform
    at the start. The next gradient measures what the weights of the last step did to the loss,
    :math:`d_{il} = \langle g_l, U_{il} \rangle`. With the rule `"relative"`,

    .. math:: a_{il} = -d_{il} + \sum_j \alpha_{jl} d_{jl}, \qquad
              q_{il} = \mathrm{clip}\big(a_{il} / \sigma_l, \pm 10\big), \qquad
              \sigma_l^2 \leftarrow \sigma_l^2 + r\,(\overline{a_l^2} - \sigma_l^2),
    .. math:: \lambda_{il} = \|U_{il}\| - \sum_j \alpha_{jl} \|U_{jl}\|, \qquad
              q_l \leftarrow \mathrm{clip}\big(q_l - (1 - \mathrm{shorten})\,\lambda_l
              \min(\langle q_l, \lambda_l\rangle_{\alpha_l} /
              \langle\lambda_l, \lambda_l\rangle_{\alpha_l}, 0), \pm 10\big),
    .. math:: b_l \leftarrow (1 - \mathrm{decay})\, b_l + \mathrm{rate}\,(q_l - \bar q_l),
    .. math:: W_l \leftarrow (1 - \mathrm{decay})\, W_l
              + \mathrm{feature\_rate}\,(q_l - \bar q_l) \otimes f

    with :math:`r = \max(1/t, 0.02)`, the features that made the weights in question, and
    :math:`\langle x, y\rangle_\alpha = \sum_i \alpha_i x_i y_i`.
    With the rule `"adam"`, Adam descends the hypergradient
    :math:`\alpha_{il}\,(d_{il} - \sum_j \alpha_{jl} d_{jl})` itself.

    The step multiplier :math:`e^c` follows the cosine between the gradient and the step
    before, :math:`c \leftarrow c - \mathrm{multiplier\_rate}\, s \cos`, within [-7, 3];
    :math:`s` is `shrink` where the step is already shorter than the experts' (:math:`c < 0`)
    and would be shortened further (:math:`\cos > 0`), else 1. All these rates fall with the
    number of steps t as :math:`\max(\mathrm{rate\_floor}, (1 + t/100)^{-1/2})`.

    Attributes:
      per_leaf: weights for each leaf of the parameters, else one set for all.
      cap: :math:`\rho`; an expert's update is shortened to a norm of
        :math:`\rho\max(\|\theta\|, 1)` over the whole tree. None: no cap.
      floor: :math:`\varphi` in [0, 1/K), the least weight of an expert.
      rule: `"relative"` or `"adam"`.
      rate: of b. None freezes the weights: uniform, the baseline.
      rate_floor: the share of themselves to which the rates of b, W and c fall; 1 for
        constant rates.
      decay: of b and W, in every step.
      feature_rate: of W.
      multiplier_rate: of c. None: no multiplier.
      shrink: the share of its rate at which c falls below 0: the step that is best for the
        next loss alone is shorter than the one that trains best.
      shorten: the share of itself at which the part of q that shortens the step counts, for
        the same reason; 1 for all of it.
      gated: while the loss falls well (its fast mean 1 % below its slow mean), c does not
        fall below 0 at all; needs `value=`.

    Examples:
      >>> import optabs
      >>> optabs.Controller(cap=None).floor
      0.01
      >>> optabs.Controller.paper().per_leaf
      False

    Source: DAO-E, eqs. 1 and 2; hypergradient descent, Baydin et al., arXiv 1703.04782.
    """

    per_leaf: bool = True
    cap: ArrayLike | None = 0.05
    floor: ArrayLike = 0.01
    rule: Rule = "relative"
    rate: ArrayLike | None = 0.15
    rate_floor: ArrayLike = 0.2
    decay: ArrayLike = 0.003
    feature_rate: ArrayLike = 0.03
    multiplier_rate: ArrayLike | None = 0.5
    shrink: ArrayLike = 0.5
    shorten: ArrayLike = 0.6
    gated: bool = False

    @classmethod
    def paper(cls) -> "Controller":
        """The form that DAO-E was published in: one set of weights, learned by Adam."""
        return cls(
            per_leaf=False,
            cap=None,
            floor=0.0,
            rule="adam",
            rate=0.05,
            rate_floor=1.0,
            decay=0.0,
            feature_rate=0.05,
            multiplier_rate=None,
        )

    @classmethod
    def uniform(cls) -> "Controller":
        """Equal weights at all times, and nothing else: the baseline."""
        return cls(rate=None, cap=None, multiplier_rate=None)

    @property
    def needs_feedback(self) -> bool:
        """Whether anything is learned from the updates of the step before."""
        return self.rate is not None or self.multiplier_rate is not None


def check_controller(controller: Controller, experts: int) -> None:
    """Raises ValueError for settings out of their range."""
    if not isinstance(controller, Controller):
        raise ValueError(f"controller is {controller!r}; pass an optabs.Controller(...).")
    if controller.rule not in get_args(Rule):
        known = " or ".join(map(repr, get_args(Rule)))
        raise ValueError(f"rule is {controller.rule!r}; pass {known}.")
    for name in ("per_leaf", "gated"):
        flag = getattr(controller, name)
        if not isinstance(flag, bool):
            raise ValueError(f"{name} is {flag!r}; pass True or False.")
    check(optional(POSITIVE), cap=controller.cap)
    check(BELOW_ONE, floor=controller.floor, decay=controller.decay)
    check(
        optional(NONNEGATIVE), rate=controller.rate, multiplier_rate=controller.multiplier_rate
    )
    check(
        SHARE,
        rate_floor=controller.rate_floor,
        shrink=controller.shrink,
        shorten=controller.shorten,
    )
    check(NONNEGATIVE, feature_rate=controller.feature_rate)
    floor: Any = controller.floor
    if not isinstance(floor, jax.Array) and floor * experts >= 1:
        raise ValueError(
            f"floor is {floor!r} for {experts} experts; pass a number below 1/{experts}."
        )
