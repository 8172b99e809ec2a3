"""Scaling laws from a table of runs, and the model that serves a demand at the least cost."""
