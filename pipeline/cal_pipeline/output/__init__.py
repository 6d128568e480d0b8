"""Publishes rows as files, and resumes, reads, verifies and cleans what was published; needs no torch.

In come measured samples (`row_writer`) or a finished directory (`row_reader`, `verify`); out go shards under their
final names and a report of each. Read `store` first, then `resume`.
"""
