"""Which runs make which table, and the benchmarks."""
