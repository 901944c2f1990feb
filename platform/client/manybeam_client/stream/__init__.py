"""Streams of frames: one interface, over a WebSocket or over several requests at once."""
