"""Several processes on this machine as one mesh."""

import contextlib
import math
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence

from optabs.evolution.devices import ADDRESS, COUNT, NUMBER


class ProcessDied(RuntimeError):
    """One of the processes ended before its work was done."""


def launch(
    command: Sequence[str], *, processes: int = 2, devices: int = 4, timeout: float = math.inf
) -> None:
    """Runs a command as several processes that find each other by `optabs.connect()`.

    What the first one writes is written here, as it comes. Where one of them ends with an
    error or the time in seconds is up, it raises ProcessDied and stops the others, which
    would wait for it. Each has so many CPU devices.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    option = "--xla_force_host_platform_device_count"
    flags = re.sub(rf"{option}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {
        ADDRESS: address,
        COUNT: str(processes),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} {option}={devices}".strip(),
    }
    until = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        started, errors = [], []
        for number in range(processes):
            errors.append(stack.enter_context(tempfile.TemporaryFile()))
            process = subprocess.Popen(
                command, env=environment | {NUMBER: str(number)},
                stdout=subprocess.DEVNULL if number else None,
                stderr=errors[number] if number else None,
            )  # fmt: skip
            started.append(process)
            stack.callback(process.wait)
            stack.callback(process.kill)
        while set(codes := [process.poll() for process in started]) != {0}:
            for number, code in ((place, code) for place, code in enumerate(codes) if code):
                errors[number].seek(0)
                lines = errors[number].read().decode(errors="replace").strip().splitlines()
                last = f" ({lines[-1].strip()})" if lines else ""
                how = "was killed by signal" if code < 0 else "ended with code"
                raise ProcessDied(
                    f"process {number} of {processes} {how} {abs(code)}{last}; the others "
                    "were stopped, so start all of them again."
                )
            if time.monotonic() > until:
                raise ProcessDied(
                    f"{processes} processes were not done after {timeout:g} seconds and were "
                    "stopped; allow more time, or look at what the first one wrote."
                )
            time.sleep(0.05)
