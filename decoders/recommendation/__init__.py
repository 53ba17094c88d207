"""Recommendations by the names of items: the command line python -m decoders.recommend. The search itself is `decoders.atspeed`."""
