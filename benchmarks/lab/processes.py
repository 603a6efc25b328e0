"""Several processes on this machine as one mesh, and what a compiled program sends in it."""

import contextlib
import math
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from optabs.evolution.devices import ADDRESS, COUNT, NUMBER

_DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")
_KINDS = (
    "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|"
    "ragged-all-to-all|reduce-scatter"
)
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


class ProcessDied(RuntimeError):
    """One of the processes ended before its work was done."""


def launch(
    command: Sequence[str],
    *,
    processes: int = 2,
    devices: int = 4,
    timeout: float | None = None,
) -> None:
    """Runs a command as several processes that find each other by `optabs.connect()`.

    What the first one writes is written here, as it comes. Where one of them dies or time is
    up, the others are stopped: they would wait for it.

    Args:
      command: the program and its arguments, the same for all.
      processes: how many.
      devices: CPU devices of each.
      timeout: in seconds; None for no limit.

    Raises:
      ProcessDied: a process ended with an error, or time was up.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    flags = _DEVICES.sub("", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {
        ADDRESS: address,
        COUNT: str(processes),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
    }
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        # What the first one writes is seen as it comes.
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes)]
        try:
            for number in range(processes):
                process = subprocess.Popen(
                    command,
                    env=environment | {NUMBER: str(number)},
                    stdout=subprocess.DEVNULL if number else None,
                    stderr=errors[number] if number else None,
                )
                started.append(process)
            _watch(started, errors, timeout)
        finally:
            for process in started:
                process.kill()
                process.wait()


def _watch(
    started: list[subprocess.Popen[bytes]], errors: Sequence[IO[bytes]], timeout: float | None
) -> None:
    until = time.monotonic() + (math.inf if timeout is None else timeout)
    while True:
        codes = [process.poll() for process in started]
        for number, code in enumerate(codes):
            if code:
                how = (
                    f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                )
                raise ProcessDied(
                    f"process {number} of {len(started)} {how}{_last_line(errors[number])}; "
                    "the others were stopped, so start all of them again."
                )
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > until:
            raise ProcessDied(
                f"{len(started)} processes were not done after {timeout:g} seconds and were "
                "stopped; allow more time, or look at what the first one wrote."
            )
        time.sleep(0.05)


def _last_line(errors: IO[bytes]) -> str:
    """In brackets, if there is one."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return f" ({lines[-1].strip()})" if lines else ""


def received(program: str) -> dict[str, int]:
    """The bytes that each device holds after the collectives of a compiled program.

    Args:
      program: the text of `jax.jit(function).lower(...).compile().as_text()`.

    Returns:
      The kind of a collective -> bytes of its results, over all of that kind; a program that
      sends nothing gives an empty dict. One inside of a loop counts once.
    """
    found: dict[str, int] = {}
    for shapes, kind, starts in _COLLECTIVE.findall(program):
        sizes = [_bytes(*array) for array in _ARRAY.findall(shapes)]
        if starts and kind in ("all-gather", "collective-permute"):
            # What an asynchronous one gives are its operands, then its results.
            sizes = sizes[len(sizes) // 2 :]
        found[kind] = found.get(kind, 0) + sum(sizes)
    return found


def _bytes(name: str, bits: str, shape: str) -> int:
    width = 1 if name == "pred" else max(1, int(bits) // 8)
    return width * math.prod(int(extent) for extent in shape.split(",") if extent)
