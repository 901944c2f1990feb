"""The prediction service: a frame comes over HTTP, atoms with their uncertainty are returned.

`edge` lets requests in, `wire` reads them and writes answers, `predict` answers (no Ray, no web),
`routes` maps URLs to it, `metrics` counts, `app` runs all of it on Ray Serve.
"""
