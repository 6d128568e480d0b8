"""Trains a vision-language model with token weights from cached or online deltas (`cal-train`).

In come annotated shards, or raw data, and a model; out goes that model, trained. `data` makes rows into batches,
`objective` deltas into weights and a loss, `run` holds what a run of hours needs; `training` ties them together. Read
objective/loss first, then trainer. What is exported here is imported when it is used: `__init__.pyi` lists it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
