"""Reads what users have, files of any input format, into samples.

In goes a `--data_path`; `planning.plan_shards` makes shards of it, `shard.read_samples` a stream of `Sample` of each
shard, `images.read_images` and `decode_images` the images of a sample. Read formats.py first. An input format is one
module that registers itself there, and one line here:
"""

from cal_pipeline.sources import arrow as arrow
from cal_pipeline.sources import imagefolder as imagefolder
from cal_pipeline.sources import json as json
from cal_pipeline.sources import parquet as parquet
from cal_pipeline.sources import webdataset as webdataset
