"""The best layout against cluster size, for a user's own model and target, from the tuner's own prices. JAX-free.

`autotune.sweep(workload, "v5p", "64..8192")` asks: see `autotune.sweep.ask.sweep`. Python sets `autotune.sweep` to this
package once any of its modules is imported, so the package itself can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        from autotune.sweep.ask import sweep

        return sweep(*arguments, **keywords)

    @property
    def __wrapped__(self) -> Any:
        """What `help` and `inspect.signature` look at."""
        from autotune.sweep.ask import sweep

        return sweep


sys.modules[__name__].__class__ = _Package
