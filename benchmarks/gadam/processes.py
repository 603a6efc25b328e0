"""Several processes on this machine, each with some forced CPU devices, as one mesh."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from optabs.evolution.devices import ADDRESS, COUNT, NUMBER

_DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")


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
    address = f"127.0.0.1:{_free_port()}"
    started: list[subprocess.Popen[str]] = []
    errors: list[_Tail] = []
    try:
        for number in range(processes):
            environment = _environment(address, processes, number, devices)
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=None if number == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            errors.append(_Tail(process.stderr, forward=number == 0))
        _watch(started, errors, timeout)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for error in errors:
            error.close()


def _watch(
    started: list[subprocess.Popen[str]], errors: "list[_Tail]", timeout: float | None
) -> None:
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        codes = [process.poll() for process in started]
        for number, code in enumerate(codes):
            if code:
                how = (
                    f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                )
                raise ProcessDied(
                    f"process {number} of {len(started)} {how}{errors[number].said()}; the "
                    "others were stopped, so start all of them again."
                )
        if all(code == 0 for code in codes):
            return
        if until is not None and time.monotonic() > until:
            raise ProcessDied(
                f"{len(started)} processes were not done after {timeout:g} seconds and were "
                "stopped; allow more time, or look at what the first one wrote."
            )
        time.sleep(0.05)


def _environment(address: str, processes: int, number: int, devices: int) -> dict[str, str]:
    flags = _DEVICES.sub("", os.environ.get("XLA_FLAGS", ""))
    return os.environ | {
        ADDRESS: address,
        COUNT: str(processes),
        NUMBER: str(number),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class _Tail:
    """The last line of a stream, which is read so that its writer never waits."""

    def __init__(self, stream: IO[str] | None, *, forward: bool) -> None:
        assert stream is not None
        self._last = ""
        self._reader = threading.Thread(target=self._read, args=(stream, forward), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str], forward: bool) -> None:
        with stream:
            for line in stream:
                if forward:
                    sys.stderr.write(line)
                self._last = line.strip() or self._last

    def close(self) -> None:
        """Waits until all is read, for as long as the writer's own children leave it open."""
        self._reader.join(timeout=1)

    def said(self) -> str:
        """The line in brackets, if there was one."""
        self._reader.join(timeout=1)
        return f" ({self._last})" if self._last else ""
