"""Networks, the members made of them, and ensembles that answer together."""
