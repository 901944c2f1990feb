"""`manybeam demo`: the main job from nothing to a report."""
