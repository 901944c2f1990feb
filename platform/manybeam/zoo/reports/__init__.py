"""Reports about versions: model cards, plots, notebook views, error overlays."""
