"""Runs many shards on many machines.

In come flags (`config`), out go published shards and a report. `plan` checks everything and lists what is to be done,
`execution` carries it out: `ray_driver` hands shards to `worker` processes, and `faults` decides what becomes of an
exception; `state` knows how far it is, for log, `status` and `metrics`. Read plan first, then worker, faults and
ray_driver.
"""
