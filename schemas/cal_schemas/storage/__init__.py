"""Reads and publishes files wherever they are: on disk, in `s3://`, `gs://` or `az://`; reads them in `hf://`.

In comes what a user typed, out comes a `Location`: a `pathlib.Path`, or an `ObjectPath` that behaves as one. Read
`locations` first, then `protocol`, which says what a store must be able to do.
"""
