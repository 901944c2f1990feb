"""Jobs on a Ray cluster: training, evaluation, calibration, adaptation."""
