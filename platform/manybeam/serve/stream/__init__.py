"""Streams of frames: `WS /v1/stream/{ID}`, where each frame is answered as a request is."""
