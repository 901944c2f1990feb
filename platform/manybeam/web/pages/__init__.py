"""The pages: the list, one version, comparisons, examples, exports."""
