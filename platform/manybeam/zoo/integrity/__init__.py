"""Checks that a version is unchanged since its registration: digests, self-tests, signatures."""
