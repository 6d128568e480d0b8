"""Subcommands of `cal-inspect`, one module each, and what they share."""
