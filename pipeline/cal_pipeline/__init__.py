"""Measures how much the image raises each caption token's logit and writes annotated shards (`cal-precompute`).

In come files of images and conversations and a reference model; out go Parquet shards with a delta for every supervised
token. The packages stand in the order of the data: sources, models, encoding, measuring, output; runtime spreads shards
over machines, inspect looks at the result. Read annotate first: one shard from source to published file. What is
exported here is imported when it is used: `__init__.pyi` lists it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
