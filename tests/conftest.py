"""Eight CPU devices, strict rank promotion, and readable asserts in the shared checks."""

import os
from importlib import metadata

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

jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("checks", "commands", "trees")
