"""The versions that a predictor answers with: loaded, cached, and kept up to date."""
