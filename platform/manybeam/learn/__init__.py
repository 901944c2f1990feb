"""Networks and what they are worth: training, ensembles, atoms, scores, adaptation."""
