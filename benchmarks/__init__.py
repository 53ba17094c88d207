"""One module per claim: python -m benchmarks.NAME prints a table with the peer's row beside ours and writes JSON."""
