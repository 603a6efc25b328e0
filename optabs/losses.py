r"""The survey's losses: one value per instance, for any leading batch shape, none included.

===============================  ===========================================  =========
loss                             of one instance                              survey
===============================  ===========================================  =========
:func:`mse`                      mean of squared errors                       eq. 1
:func:`mae`                      mean of absolute errors                      eq. 2
:func:`huber`                    mean of Huber's errors                       section 1
:func:`cosine_distance`          1 - cosine of the angle                      section 1
:func:`hinge`                    sum over the wrong classes                   eq. 3
:func:`cross_entropy`            from probabilities                           eq. 4
:func:`sigmoid_cross_entropy`    from one logit, for two classes              eq. 4
:func:`softmax_cross_entropy`    from a logit per class                       eq. 4
===============================  ===========================================  =========

The survey's training loss is the **sum** over instances (eq. 11): take `.sum()`, or
`.mean()` for a gradient whose size does not depend on the batch.

**Dtypes.** The first argument decides: it is floating point (integers are refused: they are
classes more often than predictions), and computation and result are in it or in float32,
the wider. The second is converted to that.

**Labels** of the three losses over classes are class indices, any integer dtype, of the
scores' shape without its last axis, or rows of the scores' own shape: one-hot, or a
distribution, for which the loss is its expectation over the classes. The shape decides.

**Labels out of range** raise ValueError where they are Python or NumPy numbers. In a jax
array, traced or not, they make the value and the gradient of their instance NaN, and
`jax.experimental.checkify` reports the same message, naming one of them, at no cost to
a program that does not ask:

>>> import jax, jax.numpy as jnp, optabs
>>> from jax.experimental import checkify
>>> checked = checkify.checkify(optabs.losses.hinge, errors=checkify.user_checks)
>>> error, _ = jax.jit(checked)(jnp.zeros((2, 3)), jnp.array([0, 3]))
>>> print(error.get())
labels hold 3; pass class indices from 0 to 2. (`check` failed)

Functionalise the loss and not its gradient: the gradient of a scan or map drops its checks.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import POSITIVE, check
from optabs._loss_inputs import (
    floating,
    in_range,
    nan_where_invalid,
    one_hot,
    over_classes,
    same_shape,
    vectors,
    weighted_cost,
)


def mse(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    r"""Mean squared error.

    .. math:: \ell = \frac{1}{d_y} \sum_j (y_j - \hat y_j)^2

    Args:
      predictions: :math:`\hat y`, floating point [..., d_y].
      targets: :math:`y`, real, of the same shape.

    Returns:
      The losses [...], in the targets' unit squared.

    Raises:
      ValueError: for different shapes, a scalar, or a dtype that does not fit.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> float(optabs.losses.mse(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0])))
      2.0

    Source: survey eq. 1; the errors are optax.squared_error.
    """
    predictions, targets = vectors(predictions, targets)
    return jnp.mean(optax.squared_error(predictions, targets), axis=-1)


def mae(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    r"""Mean absolute error.

    .. math:: \ell = \frac{1}{d_y} \sum_j |y_j - \hat y_j|

    The gradient of a zero error is 0.

    Args:
      predictions: :math:`\hat y`, floating point [..., d_y].
      targets: :math:`y`, real, of the same shape.

    Returns:
      The losses [...], in the targets' unit.

    Raises:
      ValueError: as :func:`mse`.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> float(optabs.losses.mae(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0])))
      1.0

    Source: survey eq. 2, corrected: the survey prints a square for the absolute value.
    """
    predictions, targets = vectors(predictions, targets)
    errors = predictions - targets
    # Not jnp.abs, whose gradient at 0 is 1 and would move a perfect prediction.
    return jnp.mean(errors * jnp.sign(errors), axis=-1)


def huber(predictions: ArrayLike, targets: ArrayLike, delta: ArrayLike = 1.0) -> jax.Array:
    r"""Huber's loss: squares of small errors, sizes of large ones.

    .. math:: \ell = \frac{1}{d_y} \sum_j h(y_j - \hat y_j), \qquad
              h(e) = \begin{cases} e^2 / 2 & |e| \le \delta \\
                     \delta\,(|e| - \delta/2) & \text{else} \end{cases}

    Args:
      predictions: :math:`\hat y`, floating point [..., d_y].
      targets: :math:`y`, real, of the same shape.
      delta: :math:`\delta` above 0, in the targets' unit; a number or a traced scalar.

    Returns:
      The losses [...], in the targets' unit squared.

    Raises:
      ValueError: as :func:`mse`; for a delta that is not above 0 or not a scalar.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> float(optabs.losses.huber(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0])))
      0.75

    Source: named in survey section 1; the errors are optax.huber_loss.
    """
    check(POSITIVE, delta=delta)
    predictions, targets = vectors(predictions, targets)
    delta = jnp.asarray(delta, predictions.dtype)
    return jnp.mean(optax.huber_loss(predictions, targets, delta=delta), axis=-1)


def cosine_distance(predictions: ArrayLike, targets: ArrayLike) -> jax.Array:
    r"""Cosine distance.

    .. math:: \ell = 1 - \frac{y \cdot \hat y}{\|y\|\, \|\hat y\|}

    A zero vector has no direction: its distance is 1 and every gradient there 0. Sizes
    whose square is beyond the dtype do no harm.

    Args:
      predictions: :math:`\hat y`, floating point [..., d_y].
      targets: :math:`y`, real, of the same shape.

    Returns:
      The losses [...], between 0 and 2.

    Raises:
      ValueError: as :func:`mse`.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> float(optabs.losses.cosine_distance(jnp.array([3.0, 0.0]), jnp.array([0.0, 1.0])))
      1.0

    Source: named in survey section 1; optax.cosine_distance of the vectors over their
    largest entries.
    """
    predictions, targets = vectors(predictions, targets)
    # The largest entry is 1, so only the norm of a zero vector is below epsilon.
    return optax.cosine_distance(
        _over_largest_entry(predictions), _over_largest_entry(targets), epsilon=0.5
    )


def hinge(scores: ArrayLike, labels: ArrayLike) -> jax.Array:
    r"""Multi-class hinge: the sum over the wrong classes, not the largest of them.

    .. math:: \ell = \sum_{j \ne l} \max(0, s_j - s_l + 1)

    The gradient of a margin of exactly 0 is 0. Rows of labels cost K times as much as class
    indices.

    Args:
      scores: :math:`s`, floating point [..., K], finite, K at least 2.
      labels: :math:`l`, class indices [...] or rows [..., K].

    Returns:
      The losses [...], in the scores' unit.

    Raises:
      ValueError: for fewer than 2 classes, a shape or dtype that does not fit, or a NumPy
        label out of range.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> dog = [0.49, 0.43, 0.08]
      >>> cat = [0.45, 0.53, 0.02]
      >>> bird = [0.21, 0.15, 0.64]
      >>> values = optabs.losses.hinge(jnp.array([dog, cat, bird]), jnp.arange(3))
      >>> [round(value, 2) for value in values.tolist()]
      [1.53, 1.41, 1.08]

    Source: survey eq. 3.
    """

    def of_classes(scores: jax.Array, classes: jax.Array) -> jax.Array:
        true = one_hot(classes, scores)
        own = jnp.sum(jnp.where(true, scores, 0.0), axis=-1, keepdims=True)
        return jnp.sum(jnp.where(true, 0.0, jax.nn.relu(scores - own + 1.0)), axis=-1)

    def of_rows(scores: jax.Array, rows: jax.Array) -> jax.Array:
        def of_class(number: jax.Array) -> jax.Array:
            return of_classes(scores, jnp.broadcast_to(number, scores.shape[:-1]))

        each = jax.vmap(of_class, out_axes=-1)(jnp.arange(scores.shape[-1]))
        return jnp.sum(weighted_cost(each, rows, scores == -jnp.inf), axis=-1)

    return over_classes("scores", scores, "labels", labels, of_classes, of_rows)


def cross_entropy(probabilities: ArrayLike, targets: ArrayLike) -> jax.Array:
    r"""Cross entropy from probabilities, by the natural logarithm.

    .. math:: \ell = -\sum_j y_j \log \hat y_j

    :math:`0 \log 0 = 0`, with a gradient of 0. A true class of probability 0 costs infinity,
    with the slope of the smallest normal number; from finite logits,
    :func:`softmax_cross_entropy` never does.

    Args:
      probabilities: :math:`\hat y`, floating point [..., K], K at least 2.
      targets: :math:`y`, class indices [...] or rows [..., K].

    Returns:
      The losses [...], in nats.

    Raises:
      ValueError: as :func:`hinge`.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> dog = [0.49, 0.43, 0.08]
      >>> cat = [0.45, 0.53, 0.02]
      >>> bird = [0.21, 0.15, 0.64]
      >>> values = optabs.losses.cross_entropy(jnp.array([dog, cat, bird]), jnp.arange(3))
      >>> [round(value, 3) for value in values.tolist()]
      [0.713, 0.635, 0.446]

    Source: survey eq. 4.
    """

    def of_classes(probabilities: jax.Array, classes: jax.Array) -> jax.Array:
        true = one_hot(classes, probabilities)
        return -_log(jnp.sum(jnp.where(true, probabilities, 0.0), axis=-1))

    def of_rows(probabilities: jax.Array, rows: jax.Array) -> jax.Array:
        taken = (rows != 0) | (probabilities > 0)
        return -jnp.sum(rows * _log(jnp.where(taken, probabilities, 1.0)), axis=-1)

    return over_classes(
        "probabilities", probabilities, "targets", targets, of_classes, of_rows
    )


def sigmoid_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    r"""Cross entropy of two classes from one logit, safe at any size.

    .. math:: \ell = -y \log \sigma(x) - (1-y) \log (1 - \sigma(x))

    An infinite logit costs nothing where it is right, else infinity, with a slope of 1.

    Args:
      logits: :math:`x`, floating point [...], one per instance.
      labels: :math:`y`, of the same shape: 0 or 1, or the probability of class 1.

    Returns:
      The losses [...], in nats.

    Raises:
      ValueError: for different shapes, a dtype that does not fit, or a NumPy label outside
        [0, 1].

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optabs.losses.sigmoid_cross_entropy(jnp.array([1e4, -1e4]), jnp.ones(2)).tolist()
      [0.0, 10000.0]

    Source: survey eq. 4 in its sigmoid form; the numbers of
    optax.sigmoid_binary_cross_entropy.
    """
    logits = floating("logits", logits)
    labels = same_shape("logits", logits, "labels", labels)
    valid = in_range("labels", labels, 1, "0, 1 or the probability of class 1")
    logits, shares = nan_where_invalid(logits, valid), jnp.asarray(labels, logits.dtype)
    one = weighted_cost(jax.nn.log_sigmoid(logits), shares, logits == -jnp.inf)
    other = weighted_cost(jax.nn.log_sigmoid(-logits), 1.0 - shares, logits == jnp.inf)
    return -one - other


def softmax_cross_entropy(logits: ArrayLike, targets: ArrayLike) -> jax.Array:
    r"""Cross entropy from logits, safe at any size.

    .. math:: \ell = -\sum_j y_j \log \frac{e^{x_j}}{\sum_k e^{x_k}}

    A logit of minus infinity rules its class out; it costs nothing where its target is 0.

    Args:
      logits: :math:`x`, floating point [..., K], K at least 2.
      targets: :math:`y`, class indices [...] or rows [..., K].

    Returns:
      The losses [...], in nats.

    Raises:
      ValueError: as :func:`hinge`.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> float(optabs.losses.softmax_cross_entropy(jnp.array([1e4, 0.0, -1e4]), 1))
      10000.0

    Source: survey eq. 4 in its softmax form; the numbers of optax.softmax_cross_entropy, and
    for class indices of optax.softmax_cross_entropy_with_integer_labels.
    """

    def of_classes(logits: jax.Array, classes: jax.Array) -> jax.Array:
        # optax's loss for integers gathers, which a mesh with explicit axes refuses along K.
        true = one_hot(classes, logits)
        own = jnp.sum(jnp.where(true, logits, 0.0), axis=-1)
        return jax.nn.logsumexp(logits, axis=-1) - own

    def of_rows(logits: jax.Array, rows: jax.Array) -> jax.Array:
        logs = jax.nn.log_softmax(logits, axis=-1)
        return -jnp.sum(weighted_cost(logs, rows, logits == -jnp.inf), axis=-1)

    return over_classes("logits", logits, "targets", targets, of_classes, of_rows)


@jax.custom_jvp
def _log(x: jax.Array) -> jax.Array:
    """The logarithm, with a finite slope at 0.

    An infinite one times the tangent 0 of another entry would be NaN in forward mode.
    """
    return jnp.log(x)


@_log.defjvp
def _log_tangent(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    least = jnp.finfo(x.dtype).tiny
    tiny = jnp.abs(x) < least
    return _log(x), tangent * jnp.where(tiny, 1 / least, 1 / jnp.where(tiny, 1.0, x))


def _over_largest_entry(vectors: jax.Array) -> jax.Array:
    """Each vector over its largest entry; a zero vector as it is, held constant."""
    peak = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    # A cosine does not depend on sizes: what the gradient of the peak adds is 0.
    peak = jax.lax.stop_gradient(peak)
    # In two steps, since 1 over the largest numbers is flushed to 0; a power of two is exact.
    far = 2.0**64
    first = jnp.where(peak > far, 1 / far, jnp.where(peak < 1 / far, far, 1.0))
    first = first.astype(vectors.dtype)
    peak *= first
    return jnp.where(peak == 0, 0.0, vectors * first / jnp.where(peak == 0, 1.0, peak))
