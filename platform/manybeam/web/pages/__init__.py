"""The pages one reads: the list, one version, comparisons, examples, exports."""
