"""Joining, starting and finding Ray, on this machine or at a facility."""
