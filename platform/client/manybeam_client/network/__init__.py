"""The way to the service: where it is, connections, and whether it is away."""
