"""A pytest plugin, `-p support.old_name`: tests that import `lightning` get `pytorch_lightning`, and nothing else.

So the tests that were written for one of Lightning's names run for the other: `lightning.pytorch.X` is the module
`pytorch_lightning.X`, and our classes derive from `pytorch_lightning`'s.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from types import ModuleType

from dtf_lightning.elastic.lightning.host import choice

OTHER = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `lightning` and all below it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lightning":
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec):
        for ours, theirs in OTHER.items():
            if f"{spec.name}.".startswith(f"{ours}."):
                module = importlib.import_module(theirs + spec.name.removeprefix(ours))
                self._own = module.__spec__, module.__loader__
                return module
        return ModuleType(spec.name)

    def exec_module(self, module):
        if module.__name__ == "lightning":
            whole = importlib.import_module("pytorch_lightning")
            vars(module).update({name: getattr(whole, name) for name in (*whole.__all__, "__version__")})
        else:
            module.__spec__, module.__loader__ = self._own  # it is who it was


assert "lightning" not in sys.modules, "load this plugin first: -p support.old_name"
sys.meta_path.insert(0, Alias())
choice.find = lambda: choice.PYTORCH_LIGHTNING
