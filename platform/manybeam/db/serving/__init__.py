"""The service at work: versions under traffic."""
