"""Every loss: arguments at random, and a literal loop over instances."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import checkify

K = 4
BATCHES = [(), (5,), (2, 3)]
VECTORS = ["mse", "mae", "huber", "cosine_distance"]
CLASSES = ["hinge", "cross_entropy", "softmax_cross_entropy"]
NAMES = [*VECTORS, *CLASSES, "sigmoid_cross_entropy"]


def log_softmax(x: np.ndarray) -> list[float]:
    top = max(x)
    total = math.log(sum(math.exp(v - top) for v in x))
    return [v - top - total for v in x]


def huber_error(error: float, delta: float = 1.0) -> float:
    size = abs(error)
    return size**2 / 2 if size <= delta else delta * (size - delta / 2)


# One instance each, as the survey writes it; floats in, a float out.
INSTANCE: dict[str, Callable[[Any, Any], float]] = {
    "mse": lambda p, t: sum((b - a) ** 2 for a, b in zip(p, t, strict=True)) / len(p),
    "mae": lambda p, t: sum(abs(b - a) for a, b in zip(p, t, strict=True)) / len(p),
    "huber": lambda p, t: sum(huber_error(b - a) for a, b in zip(p, t, strict=True)) / len(p),
    "cosine_distance": lambda p, t: (
        1 - sum(a * b for a, b in zip(p, t, strict=True)) / (math.hypot(*p) * math.hypot(*t))
    ),
    "hinge": lambda s, c: sum(max(0.0, s[j] - s[c] + 1) for j in range(len(s)) if j != c),
    "cross_entropy": lambda p, c: -math.log(p[c]),
    "softmax_cross_entropy": lambda x, c: -log_softmax(x)[c],
    "sigmoid_cross_entropy": lambda x, y: math.log1p(math.exp(-x)) + (1 - y) * x,
}


def batch_of(name: str, batch: tuple[int, ...] = (5,)) -> tuple[np.ndarray, np.ndarray]:
    """Random float64 arguments of a loss."""
    rng = np.random.default_rng([len(batch), NAMES.index(name)])
    if name in VECTORS:
        return 2 * rng.normal(size=(*batch, K)), rng.normal(size=(*batch, K))
    if name == "sigmoid_cross_entropy":
        return 3 * rng.normal(size=batch), rng.uniform(size=batch)
    scores = rng.normal(size=(*batch, K))
    if name == "cross_entropy":
        scores = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    return scores, rng.integers(K, size=batch)


def looped(name: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    batch = first.shape if name == "sigmoid_cross_entropy" else first.shape[:-1]
    values = np.empty(batch)
    for index in np.ndindex(batch):
        values[index] = INSTANCE[name](first[index], second[index])
    return values


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(K)[classes]


def opcodes(function: Callable[..., Any], *args: Any) -> list[str]:
    """The operations of the compiled program, sorted."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return sorted(re.findall(r"= \S+ ([a-z-]+)\(", text))


def sentence(function: Callable[..., Any], *args: Any) -> str | None:
    """What checkify has to say about a call."""
    checked = checkify.checkify(function, errors=checkify.user_checks)
    return jax.jit(lambda *a: checked(*a)[0])(*args).get()
