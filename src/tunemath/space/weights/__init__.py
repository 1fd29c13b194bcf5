"""Weights on disk: read, compared and written a tensor at a time, never a whole model in memory.

This is the part of the room that knows torch, for the dtypes that NumPy lacks.
"""
