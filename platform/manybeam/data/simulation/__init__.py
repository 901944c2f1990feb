"""Simulated dark-field frames with exact truth: structures, optics, rendering, recording."""
