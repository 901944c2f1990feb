"""Training of one member: loss, augmentation, threshold, fitted members."""
