"""The one answer: select members for a frame, predict F1, calibrate, answer; drift of a stream."""
