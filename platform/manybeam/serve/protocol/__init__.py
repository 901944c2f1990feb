"""The Open Inference Protocol v2 under `/v2`: clients of Triton and KServe work unchanged."""
