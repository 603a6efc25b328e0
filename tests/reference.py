"""Every rule as a literal NumPy float64 loop, written from the papers' equations.

Each takes the start and a list of gradients and returns the list of parameters after each
step. `nag` takes a gradient function instead, since its gradients are at the look-ahead.
"""

from collections.abc import Callable, Sequence

import numpy as np

Path = list[np.ndarray]
Gradients = Sequence[np.ndarray]


def _walk(theta: np.ndarray, grads: Gradients, step: Callable[..., np.ndarray]) -> Path:
    path = []
    for t, g in enumerate(grads, 1):
        theta = theta + step(t, g, theta)
        path.append(theta)
    return path


def sgd(theta: np.ndarray, grads: Gradients, lr: float) -> Path:
    return _walk(theta, grads, lambda t, g, x: -lr * g)


def momentum(theta: np.ndarray, grads: Gradients, lr: float, rho: float = 0.9) -> Path:
    v = np.zeros_like(theta)
    path = []
    for g in grads:
        v = rho * v + (1 - rho) * g
        theta = theta - lr * v
        path.append(theta)
    return path


def nag(
    theta: np.ndarray,
    grad: Callable[[np.ndarray], np.ndarray],
    rates: Sequence[float],
    rho: float = 0.9,
) -> Path:
    """Algorithm 5: the gradient is taken at theta - lr rho v."""
    v = np.zeros_like(theta)
    path = []
    for lr in rates:
        ahead = theta - lr * rho * v
        v = rho * v + (1 - rho) * grad(ahead)
        theta = theta - lr * v
        path.append(theta)
    return path


def adagrad(
    theta: np.ndarray,
    grads: Gradients,
    lr: float,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> Path:
    total = np.zeros_like(theta)
    path = []
    for g in grads:
        total = total + g**2
        theta = theta - lr * g / (np.sqrt(total + eps_root) + eps)
        path.append(theta)
    return path


def adagrad_abs(theta: np.ndarray, grads: Gradients, lr: float, eps: float = 1e-8) -> Path:
    total = np.zeros_like(theta)
    path = []
    for g in grads:
        total = total + abs(g)
        theta = theta - lr * g / (total + eps)
        path.append(theta)
    return path


def rmsprop(
    theta: np.ndarray,
    grads: Gradients,
    lr: float,
    rho: float = 0.9,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    corrected: bool = False,
) -> Path:
    mean = np.zeros_like(theta)
    path = []
    for t, g in enumerate(grads, 1):
        mean = rho * mean + (1 - rho) * g**2
        hat = mean / (1 - rho**t) if corrected else mean
        theta = theta - lr * g / (np.sqrt(hat + eps_root) + eps)
        path.append(theta)
    return path


def rmsprop_abs(
    theta: np.ndarray,
    grads: Gradients,
    lr: float,
    rho: float = 0.9,
    eps: float = 1e-8,
    corrected: bool = False,
) -> Path:
    mean = np.zeros_like(theta)
    path = []
    for t, g in enumerate(grads, 1):
        mean = rho * mean + (1 - rho) * abs(g)
        hat = mean / (1 - rho**t) if corrected else mean
        theta = theta - lr * g / (hat + eps)
        path.append(theta)
    return path


def adadelta(
    theta: np.ndarray, grads: Gradients, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6
) -> Path:
    gradients, steps = np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for g in grads:
        gradients = rho * gradients + (1 - rho) * g**2
        step = -np.sqrt(steps + eps) / np.sqrt(gradients + eps) * g
        steps = rho * steps + (1 - rho) * step**2
        theta = theta + lr * step
        path.append(theta)
    return path


def adadelta_abs(
    theta: np.ndarray, grads: Gradients, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6
) -> Path:
    gradients, steps = np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for g in grads:
        gradients = rho * gradients + (1 - rho) * abs(g)
        step = -(steps + eps) / (gradients + eps) * g
        steps = rho * steps + (1 - rho) * abs(step)
        theta = theta + lr * step
        path.append(theta)
    return path


def adam_family(
    theta: np.ndarray,
    grads: Gradients,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    *,
    sizes: bool = False,
    look_ahead: bool = False,
    weight_decay: float = 0.0,
    rising: bool = False,
    running_max: bool = False,
    max_ratio: float = np.inf,
) -> Path:
    """Adam, AdamW, Nadam, their ABS forms, and the cures of both."""
    m, v, peak = (np.zeros_like(theta) for _ in range(3))
    path = []
    for t, g in enumerate(grads, 1):
        m = b1 * m + (1 - b1) * g
        x = abs(g) if sizes else g**2
        if rising:
            v = v + (1 - b2) / (1 - b2**t) * np.maximum(x - v, 0)
            hat = v
        else:
            v = b2 * v + (1 - b2) * x
            hat = v / (1 - b2**t)
        size = hat if sizes else np.sqrt(hat + eps_root)
        if running_max:
            size = peak = np.maximum(peak, size)
        top = b1 * m + (1 - b1) * g if look_ahead else m
        ratio = top / (1 - b1**t) / (size + eps)
        ratio = np.clip(ratio, -max_ratio, max_ratio)
        theta = theta - lr * (ratio + weight_decay * theta)
        path.append(theta)
    return path
