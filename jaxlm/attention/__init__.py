"""Attention: operations, rules, position encodings and grouped-query attention."""
