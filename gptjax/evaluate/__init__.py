"""Loss on text, and benchmarks."""
