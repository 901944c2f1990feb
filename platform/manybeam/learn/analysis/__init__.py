"""What a frame shows without truth: features, condition, label-free scores, calibration sets."""
