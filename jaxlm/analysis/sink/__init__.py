"""Attention sinks: the metric, the probe that measures it in a model, reports and plots."""
