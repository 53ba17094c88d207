"""Notebooks as jupytext sources: NAME.py is edited, NAME.ipynb is made from it by python -m colab.build."""
