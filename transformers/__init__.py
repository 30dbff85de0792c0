"""Transformers: what happens to a request before and after the predictor, in its process, in its pod or elsewhere."""
