"""Benchmarks, one module per claim: python -m benchmarks.NAME prints a table that compares jaxlm with a peer, and writes JSON."""
