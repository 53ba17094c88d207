"""Attention: operations, rules, positions, and what a query does with keys."""
