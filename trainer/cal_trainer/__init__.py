"""Trains a vision-language model with CAL token weights. Empty until `cal-train` lands."""
