"""Lazy layers: the share of a layer's attention on the first and the latest tokens, and how stable it is from token to token."""
