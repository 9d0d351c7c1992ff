"""Benchmarks that stand beside the code of another commit, or need a GPU."""
