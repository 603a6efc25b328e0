"""DAO-E's rule as a literal NumPy float64 loop, for gradients that are known in advance.

Written from the rule's definition, step by step in its order, and so are its features. Leaves
are lists of arrays, experts' updates come as one list of leaves for each step.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
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
    traces: list[Leaves]  # of each expert's updates
    step: Leaves  # mixed, before the multiplier
    step_trace: Leaves
    cosines: list[float]  # of the gradient with `step` and `step_trace` of the step before
    mean_cosines: np.ndarray  # of the second, and of those with each expert's trace


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
    features: np.ndarray | None = None,
) -> list[Step]:
    """The parameters, weights, traces and multiplier after each step.

    `proposed` is experts by steps; entries that are NaN count as 0.
    What the multiplier learns from is rounded to bfloat16. `features` is [T, n].
    """
    published = rule == Controller.paper()
    experts, rows = len(proposed), 1 if published else len(theta)
    features = np.zeros((len(grads), 0)) if features is None else features
    n = features.shape[1]
    moments = Moments(n)
    b, w = np.zeros((rows, experts)), np.zeros((rows, experts, n))
    sigma2 = np.zeros(rows)
    m, v = np.zeros((rows, experts, 1 + n)), np.zeros((rows, experts, 1 + n))
    alpha = np.full((rows, experts), 1 / experts)
    c = median = high = 0.0
    means = np.zeros(1 + experts)
    traces = [[np.zeros_like(x) for x in theta] for _ in range(experts)]  # P
    s, long = ([np.zeros_like(x) for x in theta] for _ in range(2))  # s, S
    f = np.zeros(n)
    steps = []
    for t, g in enumerate(grads):
        fall = 1.0 if published else max((1 + t / 100) ** -0.5, 0.2)
        cosines, y, of_long = [0.0, 0.0], 1.0, np.ones(experts)
        if t == 0:
            median = _norm(g)
        elif t < 20:
            median *= (_norm(g) / median) ** (1 / (t + 1))
        else:
            median *= np.exp(0.05 * np.sign(_norm(g) - median))
        high = max((1 - 0.25 / (t + 1)) * high, median) if t >= 40 else median
        if t > 0 and rule.multiplier_rate is not None:
            cosines = [_cosine(g, s), _cosine(g, long)]
            by_expert = [0.0 if rule.rate is None else _cosine(g, p) for p in traces]
            means = means + max(1 / t, 1 - rule.gamma) * ([cosines[1], *by_expert] - means)
            too_far = np.clip(means / 0.005, 0.0, 1.0) ** 2
            x = np.exp(c) * _norm(s) / max(_norm(theta), 1.0)
            y = max(too_far[0], min(1.0, x / 0.005))
            of_long = np.maximum(y, too_far[1:])
            z = 1.0
            if cosines[0] > 0 and c < 0:
                z = max(too_far[0], min(1.0, x / 0.02) ** 2)
            calm = max(1 - median / (0.7 * high), 0.0)
            shorter = z * cosines[0] + min(1.0, _norm(g) / median) * cosines[1]
            shorter += calm * max(_cosine(long, theta) - 0.5, 0.0)
            c = min(max(c - rule.multiplier_rate * fall * shorter, -7.0), 3.0)
        if t > 0 and rule.rate is not None:
            d = np.array([[np.sum(x * p[leaf]) for p in traces] for leaf, x in enumerate(g)])
            if published:
                d = d.sum(axis=0, keepdims=True)
            # An expert without any update is not judged.
            judged = d != 0
            number = np.maximum(judged.sum(axis=1, keepdims=True), 1)
            advantage = (np.sum(alpha * d, axis=1, keepdims=True) - d) * judged
            if not published:
                r = max(1 / t, 0.02)
                sigma2 = sigma2 + r * ((advantage**2).sum(axis=1) / number[:, 0] - sigma2)
                q = np.clip(advantage / np.sqrt(sigma2 + 1e-20)[:, None], -10, 10)
                q = (q - q.sum(axis=1, keepdims=True) / number) * judged
                # What asks for shorter steps counts the less the shorter they are.
                norms = np.array(
                    [[_norm([p[leaf]]) for p in traces] for leaf in range(len(g))]
                )
                logs = np.log(norms, out=np.zeros_like(norms), where=judged)
                logs = (logs - logs.sum(axis=1, keepdims=True) / number) * judged
                slope = (q * logs).sum(axis=1) / (0.05 + (logs**2).sum(axis=1))
                q = (
                    q
                    - (1 - np.where(logs > 0, of_long, y))
                    * np.minimum(slope, 0)[:, None]
                    * logs
                )
                b = (1 - rule.decay) * b + rule.rate * fall * q
                b = b - b.mean(axis=1, keepdims=True)
                w = (1 - rule.decay) * w + 0.03 * fall * q[:, :, None] * f
            else:
                slope = -alpha * advantage
                slopes = slope[:, :, None] * np.concatenate([[1.0], f])
                known = judged[:, :, None]
                m = np.where(known, 0.9 * m + 0.1 * slopes, m)
                v = np.where(known, 0.999 * v + 0.001 * slopes**2, v)
                change = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
                change = change * known
                b = b - rule.rate * change[:, :, 0]
                w = w - 0.05 * change[:, :, 1:]
        if rule.rate is not None:
            f = moments.standardised(features[t])
            alpha = rule.floor + (1 - experts * rule.floor) * _softmax(b + w @ f)
        updates = [[np.nan_to_num(x) for x in expert[t]] for expert in proposed]
        if rule.cap is not None:
            longest = rule.cap * max(_norm(theta), 1.0) / max(np.exp(c), 1.0)
            updates = [
                [x * min(1.0, longest / max(_norm(u), 1e-300)) for x in u] for u in updates
            ]
        at = np.broadcast_to(alpha, (len(theta), experts))
        s = [
            sum(a * u[leaf] for a, u in zip(at[leaf], updates, strict=True))
            for leaf in range(len(theta))
        ]
        theta = [x + np.exp(c) * y for x, y in zip(theta, s, strict=True)]
        long = [_up_or_down(rule.gamma * x + y, t) for x, y in zip(long, s, strict=True)]
        s = [_bfloat16(x) for x in s]
        traces = [
            [rule.gamma * x + y for x, y in zip(p, u, strict=True)]
            for p, u in zip(traces, updates, strict=True)
        ]
        steps.append(Step(theta, alpha, float(np.exp(c)), traces, s, long, cosines, means))
    return steps


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def _up_or_down(x: np.ndarray, t: int) -> np.ndarray:
    """Down, after adding a share of a step of bfloat16: multiples of the golden ratio."""
    word = np.float32(x).view(np.uint32) + np.uint32((t * 0x9E3779B9 % 2**32) >> 16)
    return (word & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def _cosine(one: Leaves, other: Leaves) -> float:
    inner = sum(np.sum(x * y) for x, y in zip(one, other, strict=True))
    norms = _norm(one) * _norm(other)
    return float(inner / norms) if norms else 0.0
