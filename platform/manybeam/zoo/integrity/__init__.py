"""Whether a version is what was registered: digests, self-tests, signatures."""
