"""Turns shards and sources into batches: datasets, alignment with the measurement, order. Read dataset first."""
