"""Looks at annotated shards: tables for pandas, and `cal-inspect`.

In come annotated shards; out go frames, figures, pages, filtered directories and weights for other trainers.
`cli` names the subcommands, a module each in `commands`; read `frames` first. What is exported here is imported
when it is used: `__init__.pyi` lists it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
