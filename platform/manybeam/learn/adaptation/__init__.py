"""Gated rounds of iterative training: pseudo-labels, twins, the acceptance gate."""
