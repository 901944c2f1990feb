"""Simulated dark-field frames with exact truth: structures, optics, rendering, recording."""

# Raised whenever frames of one condition and seed change. It is part of the names of frames, runs
# and scores, so that results of an older simulator are not taken for new ones.
SIMULATOR = 3
