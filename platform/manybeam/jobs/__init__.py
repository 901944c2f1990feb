"""The same work on a Ray cluster: training, measuring, adapting, and where it runs."""
