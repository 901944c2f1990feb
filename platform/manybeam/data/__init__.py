"""Frames and the truth on them, in Zarr: storage, intake, simulation, tiles."""
