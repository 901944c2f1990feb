"""Versions under traffic: shadow, canary, and how both versions of a rollout answered."""
