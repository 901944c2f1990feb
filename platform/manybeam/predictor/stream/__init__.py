"""Drift of a stream of frames: since when, and what to do about it."""
