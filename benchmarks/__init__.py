"""Measurements of the whole pipeline beside the plain way to build it; see `benchmarks.pipeline`."""
