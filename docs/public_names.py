"""Shows mkdocstrings which names our packages export: those that `__init__.pyi` imports, in its order."""

from __future__ import annotations

from typing import Any

import griffe


class PublicNames(griffe.Extension):
    """A package that `lazy_loader` fills has its `__all__` only when it runs; nothing is run here."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Sets the exports of the package and of the packages in it."""
        for module in [pkg, *(member for member in pkg.modules.values() if member.is_subpackage)]:
            if "lazy_loader" in module.imports:
                module.exports = [name for name, target in module.imports.items() if target.endswith(f".{name}")]
