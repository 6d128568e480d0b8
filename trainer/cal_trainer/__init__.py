"""Trains a vision-language model with token weights from cached or online deltas (`cal-train`)."""
