"""Manybeam: ensembles of networks for microscopes, kept in one zoo and served with uncertainty."""

__version__ = "0.1.0"
