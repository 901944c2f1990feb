"""Instrument files and arrays, read into frames with their pixel size and condition."""
