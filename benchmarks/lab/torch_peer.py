"""Eager PyTorch to be timed beside compiled programs: an epoch of training, and a step."""

import importlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.lab.arguments import ArgumentError

VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}


def load_torch() -> Any:
    """PyTorch, with all cores; raises ArgumentError where it is missing."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ArgumentError(
            f"PyTorch cannot be imported ({error}); call `make peers`."
        ) from error
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    torch.set_num_threads(cores or 1)
    return torch


def device() -> str:
    """PyTorch's name of the kind of device that JAX uses."""
    backend = jax.default_backend()
    if backend == "cpu":
        load_torch()
        return "cpu"
    if backend == "gpu" and load_torch().cuda.is_available():
        return "cuda"
    raise ArgumentError(
        f"JAX runs on {backend!r} where this PyTorch cannot follow; set JAX_PLATFORMS=cpu or "
        "install a PyTorch for that device."
    )


def make_epoch(
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    batch_size: int,
    learning_rate: float,
    variant: str,
    device: str,
) -> Callable[[], tuple[float, float]]:
    """A function that trains one epoch with torch.optim.Adam.

    Args:
      layers: kernel [inputs, outputs] and bias [outputs] of each linear layer.
      train: float32 [n, inputs] and int labels [n]; what fills no batch is left out.
      validation: likewise.
      batch_size: examples per step.
      learning_rate: Adam's; its other numbers are the defaults that JAX uses, too.
      variant: one of VARIANTS.
      device: "cpu" or "cuda".

    Returns:
      () -> (mean loss, validation accuracy); the device is idle when it returns.
    """
    torch = load_torch()
    modules: list[Any] = []
    for kernel, bias in layers:
        linear = torch.nn.Linear(*kernel.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(kernel.T)))
            linear.bias.copy_(torch.from_numpy(np.array(bias)))
        modules += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*modules[:-1]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, **VARIANTS[variant])
    images, labels, held_out, held_out_labels = (
        torch.from_numpy(np.array(array)).to(device)
        for images, labels in (train, validation)
        for array in (images, labels.astype(np.int64))
    )
    loss_of = torch.nn.functional.cross_entropy

    def epoch() -> tuple[float, float]:
        order = torch.randperm(len(labels), device=device)
        batches = len(labels) // batch_size
        total = torch.zeros((), device=device)
        for rows in order[: batches * batch_size].view(batches, batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach()  # .item() would wait for the device at every step
        with torch.no_grad():
            right = (model(held_out).argmax(-1) == held_out_labels).float().mean()
        return float(total) / batches, float(right)

    return epoch


def adamw_step(
    shapes: Sequence[tuple[int, ...]], learning_rate: float, device: str
) -> Callable[[int], float]:
    """From repeats to seconds per step of torch.optim.AdamW, fused, on given gradients.

    A step is called from Python; a GPU works the calls off in one queue.
    """
    torch = load_torch()
    params = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
    for shape, param in zip(shapes, params, strict=True):
        param.grad = torch.randn(shape, device=device)
    optimizer = torch.optim.AdamW(params, lr=learning_rate, fused=True)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def call(repeats: int) -> float:
        wait()
        started = time.perf_counter()
        for _ in range(repeats):
            optimizer.step()
        wait()
        return (time.perf_counter() - started) / repeats

    return call
