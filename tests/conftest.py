"""Eight CPU devices, strict rank promotion, and readable asserts in the shared checks."""

import os

# Most of a test's time is compiling, and LLVM's later passes are a good part of that. Flags
# that are already set stay: with level 3, programs are what users have.
FLAGS = {"xla_force_host_platform_device_count": 8, "xla_backend_optimization_level": 1}
# Read when jax makes its devices, so they have to be there before any test imports jax; an
# xdist worker reads this file too.
for name, value in FLAGS.items():
    if name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{name}={value}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("checks", "commands", "trees")
