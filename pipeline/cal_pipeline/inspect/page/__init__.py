"""The page of `cal-inspect page`: its data, its parts, and the figures and shades that other subcommands share."""
