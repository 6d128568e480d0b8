"""Turns deltas into weights and logits into a loss. Read weights and loss first, then delta_source."""
