"""Eight CPU devices, strict rank promotion, and readable asserts in the shared checks."""

import collections
import ctypes
import functools
import gc
import math
import os
import pathlib
import re
import zlib
from importlib import metadata
from typing import Any

# Read when jax makes its devices, so they have to be there before any test imports jax; an
# xdist worker reads this file too.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )
# Most of a test's time is compiling: LLVM's passes are a good part of that, and jaxlib 0.10's
# emitters of fused loops, which are compiled through MLIR, most of the rest. A level that is
# already set stays, and with it the emitters: with 3, programs are those that users have.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += (
        " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    )
    if metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax._src.interpreters import mlir

# Making an MLIR context is a fifth of compiling an operation, and what was compiled keeps its
# own, 1.2 MB. Here all programs share one.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)
jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("checks", "commands", "trees")

_WORKER_BYTES = 1.5e9  # at its peak
# What was compiled is dropped between two tests once a process holds this, and this much more
# than the last time left.
_CLEARED_BYTES, _GROWTH_BYTES = 1.0e9, 0.3e9
_LEFT = {"bytes": 0.0}
_PEAKS: dict[str, float] = {}


def _memory(path: str, pattern: str) -> float | None:
    """The kB that a file of Linux's /proc states, in bytes; None on other systems."""
    try:
        found = re.search(pattern + r":\s+(\d+) kB", pathlib.Path(path).read_text())
    except OSError:
        return None
    return None if found is None else 1024.0 * int(found[1])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many as there are cores, and as the memory that is free has room for."""
    free = _memory("/proc/meminfo", "MemAvailable")
    fitting = math.inf if free is None else free // _WORKER_BYTES
    return int(max(1, min(os.cpu_count() or 1, fitting)))


def scope_of(nodeid: str) -> str:
    """What one worker runs in a row, because it shares what is compiled.

    A file; of the contract, the rows of a module's checks, which have operations in common,
    or all checks of the large rows, which have most operations for themselves.
    """
    path, _, test = nodeid.partition("::")
    found = re.fullmatch(r"test_contract\[(\w+)-((dao_e|steered|narrow)?.*)\]", test)
    if found is None:
        return path
    from checks import CHECKS  # only the process that schedules needs it

    return found[3] or CHECKS[f"check_{found[1]}"].function.__module__


def _is_named(config: pytest.Config) -> bool:
    return any("::" in given for given in config.args)


def pytest_configure(config: pytest.Config) -> None:
    """A test that is asked for by its name runs, and all its rows, slow or not."""
    if _is_named(config) and config.option.markexpr == "not slow":
        config.option.markexpr = ""


_EVERY = 4  # rows of a parametrised test


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A quick run has every row of the contract, and of other tests a part by hash.

    The other rows are slow ones.
    """
    if _is_named(config):
        return
    rows = collections.defaultdict(list)
    for item in items:
        name, bracket, _ = item.nodeid.partition("[")
        quick = not (name.endswith("::test_contract") or item.get_closest_marker("slow"))
        if bracket and quick:
            rows[name].append(item)
    for each in rows.values():
        each.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in each[math.ceil(len(each) / _EVERY) :]:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    # xdist's own groups, of `loadgroup`, are not seen since pytest 9.2: each test is one.
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByScope(config, log)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    held = _memory("/proc/self/status", "VmRSS")
    if held is not None and held > max(_CLEARED_BYTES, _LEFT["bytes"] + _GROWTH_BYTES):
        jax.clear_caches()
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # glibc keeps what is freed
            trim(0)
        _LEFT["bytes"] = _memory("/proc/self/status", "VmRSS") or 0.0


def pytest_sessionfinish(session: pytest.Session) -> None:
    peak = _memory("/proc/self/status", "VmHWM")
    if peak is None:
        return
    if hasattr(session.config, "workeroutput"):  # of xdist's worker, for the main process
        session.config.workeroutput["peak"] = peak
    _PEAKS["main"] = peak


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if "peak" in getattr(node, "workeroutput", {}):
        _PEAKS[node.gateway.id] = node.workeroutput["peak"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    peaks = [f"{name} {peak / 1e9:.2f} GB" for name, peak in sorted(_PEAKS.items())]
    terminalreporter.write_line(f"peak memory: {', '.join(peaks)}")
