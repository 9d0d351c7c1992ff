"""Benchmarks, each a module with its commands on top; ``results/benchmarks`` has their tables."""

import sigma.environment  # noqa: F401  before any of them loads torch
