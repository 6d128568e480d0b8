"""Defines what the measuring and the training program agree on: samples, measurement specs, the annotated shard.

Imports neither torch nor transformers. sample is one image-text example, spec all that a delta depends on, annotated
the Parquet format with its codec (metadata its footer, writer its files), opened a directory of shards as one data set,
whole what of it is missing or damaged, storage files wherever they are. Read spec first. What is exported here is
imported when it is used: `__init__.pyi` lists it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
