"""Predicted F1: what it is, how it is learned, and what the summary of a frame says of it."""
