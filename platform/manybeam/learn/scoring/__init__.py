"""How right an answer is: matching, scores, kinds of atom, calibration, the classical detector."""
