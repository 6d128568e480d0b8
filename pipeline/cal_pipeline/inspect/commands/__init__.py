"""Subcommands of `cal-inspect`, a module each: its flags (`add_arguments`) and what it does (`run`)."""
