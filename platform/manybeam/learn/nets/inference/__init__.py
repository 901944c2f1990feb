"""The networks of an ensemble made ready to run, and run on frames of any size."""
