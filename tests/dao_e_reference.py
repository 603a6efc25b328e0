"""DAO-E's rule as a literal NumPy float64 loop, for gradients that are known in advance.

Written from the rule's definition, step by step in its order, and so are its features. Leaves
are lists of arrays, experts' updates come as one list of leaves for each step.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import reference

from optabs import Controller

Leaves = list[np.ndarray]


def lion(
    theta: np.ndarray,
    grads: Sequence[np.ndarray],
    lr: float,
    b1: float = 0.9,
    b2: float = 0.99,
) -> reference.Path:
    m = np.zeros_like(theta)
    path = []
    for g in grads:
        theta = theta - lr * np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        path.append(theta)
    return path


PATHS: dict[str, Any] = {
    "sgd": reference.sgd,
    "adam": reference.adam_family,
    "rmsprop": reference.rmsprop,
    "lion": lion,
}


def proposals(name: str, rate: float, grads: Sequence[Leaves]) -> list[Leaves]:
    """An expert's update for each gradient: what its path from 0 adds."""
    by_leaf = []
    for leaf in zip(*grads, strict=True):
        start = np.zeros_like(leaf[0])
        path = PATHS[name](start, leaf, rate)
        by_leaf.append(np.diff([start, *path], axis=0))
    return [list(each) for each in zip(*by_leaf, strict=True)]


class Step(NamedTuple):
    theta: Leaves
    weights: np.ndarray  # [L, K], or [1, K] for one set
    multiplier: float


class Moments:
    """Features in units of their running deviation."""

    def __init__(self, number: int) -> None:
        self.seen = np.zeros(number)
        self.mean = np.zeros(number)
        self.variance = np.zeros(number)

    def standardised(self, raw: np.ndarray) -> np.ndarray:
        """Absent numbers are NaN."""
        there = np.isfinite(raw)
        self.seen += there
        rate = np.maximum(1 / np.maximum(self.seen, 1), 0.01)
        away = np.where(there, raw - self.mean, 0.0)
        self.mean = self.mean + rate * away
        # The moving form of Welford's recursion.
        self.variance = np.where(
            there, (1 - rate) * (self.variance + rate * away**2), self.variance
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = (raw - self.mean) / np.sqrt(self.variance)
        return np.where(there & (self.seen > 3), np.clip(scaled, -3, 3), 0.0)


def batch_entries(batch: Any) -> tuple[np.ndarray, float]:
    """Every entry as it counts, and the entropy."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    numbers = [np.abs(x) if np.iscomplexobj(x) else x for x in arrays if x.dtype.kind in "fc"]
    reals = np.concatenate([np.zeros(0), *(x.astype(np.float64).ravel() for x in numbers)])
    reals = np.clip(reals[np.isfinite(reals)], -1e12, 1e12)
    names = [x.astype(np.int64).ravel() % 128 for x in arrays if x.dtype.kind in "biu"]
    names = np.concatenate([np.zeros(0, np.int64), *names])
    kinds = []
    if reals.size:
        bins = np.floor((reals - reals.mean()) * 4 / np.sqrt(reals.var() + 1e-30)) + 16
        kinds.append((reals, _entropy(np.clip(bins, 0, 31))))
    if names.size:
        share = np.bincount(names) / names.size
        kinds.append((share[names], _entropy(names)))
    entries = np.concatenate([each for each, _ in kinds])
    entropy = sum(each.size * value for each, value in kinds) / entries.size
    return entries, float(entropy)


def _entropy(labels: np.ndarray) -> float:
    share = np.unique(labels, return_counts=True)[1] / labels.size
    return float(-np.sum(share * np.log(share)))


def _norm(leaves: Leaves) -> float:
    return float(np.sqrt(sum(np.sum(x**2) for x in leaves)))


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def mixture(
    theta: Leaves,
    grads: Sequence[Leaves],
    proposed: Sequence[Sequence[Leaves]],
    rule: Controller,
    losses: Sequence[float] | None = None,
    features: np.ndarray | None = None,
) -> list[Step]:
    """The parameters, weights and multiplier after each step.

    `proposed` is experts by steps; an update with a NaN is shut out. `features` is [T, n].
    """
    experts, rows = len(proposed), len(theta) if rule.per_leaf else 1
    features = np.zeros((len(grads), 0)) if features is None else features
    n = features.shape[1]
    moments = Moments(n)
    b, w = np.zeros((rows, experts)), np.zeros((rows, experts, n))
    sigma2 = np.zeros(rows)
    m, v = np.zeros((rows, experts, 1 + n)), np.zeros((rows, experts, 1 + n))
    alpha = np.full((rows, experts), 1 / experts)
    c, slow, fast = 0.0, 0.0, 0.0
    kept: list[Leaves] = []
    sound = np.ones(experts, bool)
    f = np.zeros(n)
    steps = []

    def mixed() -> Leaves:
        at = np.broadcast_to(alpha, (len(theta), experts))
        return [
            sum(a * u[leaf] for a, u in zip(at[leaf], kept, strict=True))
            for leaf in range(len(theta))
        ]

    for t, g in enumerate(grads):
        if losses is not None:
            loss = losses[t]
            slow = loss if t == 0 else 0.98 * slow + 0.02 * loss
            fast = loss if t == 0 else 0.8 * fast + 0.2 * loss
        fall = max((1 + t / 100) ** -0.5, float(rule.rate_floor))
        if t > 0 and rule.multiplier_rate is not None:
            step = mixed()
            inner = sum(np.sum(x * y) for x, y in zip(g, step, strict=True))
            cosine = inner / (_norm(g) * _norm(step))
            share = rule.shrink if c < 0 < cosine else 1.0
            new = c - fall * rule.multiplier_rate * share * cosine
            if rule.gated and losses is not None and fast < 0.99 * slow and new < c:
                new = max(new, min(c, 0.0))
            c = min(max(new, -7.0), 3.0)
        if t > 0 and rule.rate is not None:
            d = np.array([[np.sum(x * u[leaf]) for u in kept] for leaf, x in enumerate(g)])
            if not rule.per_leaf:
                d = d.sum(axis=0, keepdims=True)
            s = -d
            advantage = s - np.sum(alpha * s, axis=1, keepdims=True)
            # An expert that was shut out in the step before is not judged by it.
            advantage = advantage * sound
            if rule.rule == "relative":
                r = max(1 / t, 0.02)
                sigma2 = sigma2 + r * (np.mean(advantage[:, sound] ** 2, axis=1) - sigma2)
                q = np.clip(advantage / np.sqrt(sigma2 + 1e-20)[:, None], -10, 10)
                q = (q - q[:, sound].mean(axis=1, keepdims=True)) * sound
                norms = np.array([[_norm([u[leaf]]) for u in kept] for leaf in range(len(g))])
                if not rule.per_leaf:
                    norms = np.sqrt(np.sum(norms**2, axis=0, keepdims=True))
                length = np.sum(alpha * norms, axis=1, keepdims=True)
                away = (norms - length) * sound
                inner = np.sum(alpha * q * away, axis=1, keepdims=True)
                spread = np.sum(alpha * away**2, axis=1, keepdims=True) + 1e-6 * length**2
                shortens = np.minimum(inner / (spread + 1e-300), 0) * away
                q = np.clip(q - (1 - rule.shorten) * shortens, -10, 10)
                q = (q - q[:, sound].mean(axis=1, keepdims=True)) * sound
                b = (1 - rule.decay) * b + fall * rule.rate * q
                b = b - b.mean(axis=1, keepdims=True)
                w = (1 - rule.decay) * w + fall * rule.feature_rate * q[:, :, None] * f
            else:
                slope = -alpha * advantage
                slopes = slope[:, :, None] * np.concatenate([[1.0], f])
                judged = sound[None, :, None]
                m = np.where(judged, 0.9 * m + 0.1 * slopes, m)
                v = np.where(judged, 0.999 * v + 0.001 * slopes**2, v)
                change = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
                change = change * judged
                b = (1 - rule.decay) * b - fall * rule.rate * change[:, :, 0]
                w = (1 - rule.decay) * w - fall * rule.feature_rate * change[:, :, 1:]
        f = moments.standardised(features[t])
        alpha = rule.floor + (1 - experts * rule.floor) * _softmax(b + w @ f)
        kept = []
        for expert in proposed:
            u = expert[t]
            if rule.cap is not None and np.isfinite(_norm(u)):
                longest = rule.cap * max(_norm(theta), 1.0)
                u = [x * min(1.0, longest / max(_norm(u), 1e-300)) for x in u]
            kept.append(u)
        sound = np.array([np.isfinite(_norm(u)) for u in kept])
        kept = [
            u if ok else [np.zeros_like(x) for x in u]
            for u, ok in zip(kept, sound, strict=True)
        ]
        alpha = alpha * sound
        alpha = alpha / alpha.sum(axis=1, keepdims=True)
        theta = [x + np.exp(c) * y for x, y in zip(theta, mixed(), strict=True)]
        steps.append(Step(theta, alpha, float(np.exp(c))))
    return steps
