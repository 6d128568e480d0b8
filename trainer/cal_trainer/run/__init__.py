"""Holds what a run needs around its steps: trained parts, adapters, sharding, checks, checkpoints, model card."""
