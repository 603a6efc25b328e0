"""Eight CPU devices, strict rank promotion, and readable asserts in the shared checks."""

import os

# Read when jax makes its devices, so it has to be there before any test imports jax; an
# xdist worker reads this file too.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("checks", "commands", "trees")
