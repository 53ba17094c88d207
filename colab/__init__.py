"""Notebooks and their jupytext sources. Edit NAME.py, then write NAME.ipynb with python -m colab.build."""
