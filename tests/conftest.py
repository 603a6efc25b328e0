"""Eight CPU devices, strict rank promotion, and readable asserts in the shared checks."""

import os

# Read when jax makes its devices, so they have to be there before any test imports jax; an
# xdist worker reads this file too.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )
# Most of a test's time is compiling, and LLVM's passes are a good part of that. A level that
# is already set stays: with 3, programs are those that users have.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("checks", "commands", "trees")
