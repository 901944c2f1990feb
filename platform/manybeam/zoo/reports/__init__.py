"""What people read of a version: model cards, plots, notebook views, error overlays."""
