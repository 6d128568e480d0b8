"""Annotated shards as tables: frames for pandas, figures of rows and tokens, conditions, texts of tokens."""
