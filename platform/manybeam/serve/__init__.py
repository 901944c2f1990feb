"""The prediction service: frames in over HTTP, atoms with their uncertainty out.

`wire` knows the forms on the wire, `predict` answers (no Ray, no web), `routes` puts the answers
behind URLs, `metrics` counts, `app` runs all of it on Ray Serve.
"""
