"""Experiments that measure optabs; run from the checkout as `python -m benchmarks`."""
