"""Sessions of instruments: who answers the frames of one, from frame to frame."""
