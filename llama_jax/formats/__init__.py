"""Weights of other frameworks: out of a checkpoint, and into one."""
