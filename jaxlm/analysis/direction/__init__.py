"""Losses of texts read forward and in reverse: scoring, score files, reports, and data selection by the difference."""
