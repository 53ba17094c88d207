"""Lazy layers: how much of their attention goes to the first and the latest tokens, and whether it stays so."""
