"""Measures how much the image raises each caption token's logit and writes annotated shards (`cal-precompute`)."""
