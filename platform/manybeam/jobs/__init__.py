"""The functions of `learn` on a Ray cluster: training, evaluation, one round of adaptation."""
