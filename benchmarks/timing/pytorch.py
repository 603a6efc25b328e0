"""PyTorch beside JAX, in the same process and on the same kind of device."""

import importlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import environment

ADAMW = "torch.optim.AdamW, fused"
MOVED = 28  # bytes a parameter: it and two moments read and written, the gradient read


def load_torch() -> tuple[Any, str]:
    """PyTorch, with all cores, and its name of the kind of device that JAX uses."""
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ArgumentError(f"PyTorch is missing ({error}); call `make peers`.") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("PyTorch sees no GPU; set JAX_PLATFORMS=cpu or install another.")
    torch.set_num_threads(environment()["cores"] or 1)
    return torch, device


def available() -> bool:
    """Whether it is installed, and for the device that JAX uses."""
    try:
        load_torch()
    except ArgumentError:
        return False
    return True


class AdamW:
    """Steps of its fused AdamW, on given gradients of such shapes."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], rate: float) -> None:
        torch, device = load_torch()
        params = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
        for leaf in params:
            leaf.grad = torch.randn_like(leaf)
        self._step = torch.optim.AdamW(params, lr=rate, fused=True).step
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def call(self, repeats: int) -> float:
        """Seconds per step, called from Python one after the other."""
        self._wait()
        started = time.perf_counter()
        for _ in range(repeats):
            self._step()
        self._wait()
        return (time.perf_counter() - started) / repeats
