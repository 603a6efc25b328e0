"""The rules that were tried to steady ABS, and the parents under the same cures.

Each is spelled from the words, so the table of what was tried shows what the words can
say. A rule takes a rate (a number or a schedule) and returns an optimizer.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

import optabs

Rule = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]

# E|g| = sqrt(2/pi) * root mean square for a Gaussian gradient.
GAUSSIAN = (jnp.pi / 2) ** 0.5


def peak_abs() -> optax.GradientTransformationExtraArgs:
    """The largest size so far, with no mean."""
    return optax.chain(optabs.mean_abs(0.0), optabs.running_max())


def _rule(
    numerator: optax.GradientTransformation,
    *denominator: optax.GradientTransformation,
    bound: float | None = None,
    scale: float = 1.0,
) -> Rule:
    size = optax.chain(*denominator)
    clip = optax.identity() if bound is None else optax.clip(bound)
    return lambda rate: optax.chain(
        optabs.scale_by_ratio(numerator, size),
        clip,
        optax.scale(scale),
        optax.scale_by_learning_rate(rate),
    )


def _adam_rules() -> dict[str, Rule]:
    def mean(b2: float = 0.999) -> optax.GradientTransformationExtraArgs:
        return optabs.mean_abs(b2, bias_correction=True)

    m = optabs.ema(0.9, bias_correction=True)
    rms = optabs.rms(0.999, bias_correction=True)
    top = optabs.running_max()
    return {
        "adam": _rule(m, rms),
        "adam, bounded": _rule(m, rms, bound=1.0),
        "adam, max": _rule(m, rms, top),
        "adam, max, bounded": _rule(m, rms, top, bound=1.0),
        "adam, rising": _rule(m, optabs.rising_rms(0.999)),
        "adam, rising, bounded": _rule(m, optabs.rising_rms(0.999), bound=1.0),
        "adam_abs": _rule(m, mean()),
        "adam_abs, half rate": _rule(m, mean(), scale=0.5),
        "adam_abs, calibrated": _rule(m, mean(), scale=1 / GAUSSIAN),
        "adam_abs, bounded": _rule(m, mean(), bound=1.0),
        "adam_abs, b2=b1=0.9": _rule(m, mean(0.9)),
        "adam_abs, b1=b2=0.95": _rule(optabs.ema(0.95, bias_correction=True), mean(0.95)),
        "adam_abs, b2=0.968": _rule(m, mean(0.968)),
        "adam_abs, max": _rule(m, mean(), top),
        "adam_abs, max, bounded": _rule(m, mean(), top, bound=1.0),
        "adam_abs, max, calibrated": _rule(m, mean(), top, scale=1 / GAUSSIAN),
        "adam_abs, max, b2=0.99": _rule(m, mean(0.99), top),
        "adam_abs, rising": _rule(m, optabs.rising_abs(0.999)),
        "adam_abs, rising, bounded": _rule(m, optabs.rising_abs(0.999), bound=1.0),
        "adam_abs, rising, calibrated": _rule(m, optabs.rising_abs(0.999), scale=1 / GAUSSIAN),
        "adam_abs, rising, b2=0.99": _rule(m, optabs.rising_abs(0.99)),
        "adam_abs, peak": _rule(m, peak_abs()),
    }


def _rmsprop_rules() -> dict[str, Rule]:
    g = optax.identity()
    rms = optabs.rms(0.99, bias_correction=True)
    mean = optabs.mean_abs(0.99, bias_correction=True)
    top = optabs.running_max()
    return {
        "rmsprop": _rule(g, optabs.rms(0.99)),
        "rmsprop, corrected": _rule(g, rms),
        "rmsprop, corrected, bounded": _rule(g, rms, bound=1.0),
        "rmsprop, corrected, max": _rule(g, rms, top),
        "rmsprop, corrected, max, bounded": _rule(g, rms, top, bound=1.0),
        "rmsprop, rising": _rule(g, optabs.rising_rms(0.99)),
        "rmsprop, rising, bounded": _rule(g, optabs.rising_rms(0.99), bound=1.0),
        "rmsprop_abs": _rule(g, optabs.mean_abs(0.99)),
        "rmsprop_abs, bounded": _rule(g, optabs.mean_abs(0.99), bound=1.0),
        "rmsprop_abs, max": _rule(g, optabs.mean_abs(0.99), top),
        "rmsprop_abs, corrected": _rule(g, mean),
        "rmsprop_abs, corrected, calibrated": _rule(g, mean, scale=1 / GAUSSIAN),
        "rmsprop_abs, corrected, bounded": _rule(g, mean, bound=1.0),
        "rmsprop_abs, corrected, max": _rule(g, mean, top),
        "rmsprop_abs, corrected, max, bounded": _rule(g, mean, top, bound=1.0),
        "rmsprop_abs, corrected, max, calibrated": _rule(g, mean, top, scale=1 / GAUSSIAN),
        "rmsprop_abs, rising": _rule(g, optabs.rising_abs(0.99)),
        "rmsprop_abs, rising, bounded": _rule(g, optabs.rising_abs(0.99), bound=1.0),
        "rmsprop_abs, rising, calibrated": _rule(
            g, optabs.rising_abs(0.99), scale=1 / GAUSSIAN
        ),
        "rmsprop_abs, peak": _rule(g, peak_abs()),
    }


RULES: dict[str, Rule] = _adam_rules() | _rmsprop_rules()
