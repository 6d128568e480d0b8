"""Measures deltas: `EncodedSample` and model in, `MeasuredSample` with per-token numbers out.

conditions makes the inputs of the pass without the image, contrast runs both passes, measure batches rows and turns
what goes wrong into a row's status. self_check, row_check and load_check prove at load that a model's numbers are what
they claim to be. Read contrast first.
"""
