"""gradio, imported for use: quickly, and without a word to anybody."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from disa.errors import DisaError

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
WRITES_STUBS = "gradio.component_meta"


class _WithoutStubs:
    """Finds gradio's module that writes type stubs beside gradio's own files, and leaves that out: to parse the source
    of every component takes half of the time of the import, and helps those alone who write components."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == WRITES_STUBS else None
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def without_stubs(module: ModuleType) -> None:
            execute(module)
            if hasattr(module, "create_or_modify_pyi"):
                module.__dict__["create_or_modify_pyi"] = lambda *_: None

        loader.exec_module = without_stubs
        return spec


def import_gradio() -> None:
    """So that `import gradio` is quick from here on. Raises DisaError where it is missing."""
    os.environ.update(QUIET)
    finder = _WithoutStubs()
    sys.meta_path.insert(0, finder)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise DisaError(f'the studio needs {error.name}: pip install "disa[studio]".') from error
    finally:
        with suppress(ValueError):
            sys.meta_path.remove(finder)
