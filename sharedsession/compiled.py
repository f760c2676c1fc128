"""What is compiled, if a compiler was at hand when the library was installed.

The modules that applications spend most time in are there twice, for that part of
them.  What is compiled is a translation of the Python, and whatever is not usual it
leaves to Python, too.  Set ``DISABLE_SHAREDSESSION_CEXT`` in the environment to do
without.
"""

from __future__ import annotations

import os
import threading
from types import BuiltinFunctionType
from typing import Any

parts: Any
try:
    from . import _compiled as parts
except ImportError:
    parts = None

# Where greenlets pass for threads, as with gevent, threads are not the interpreter's.
if os.environ.get("DISABLE_SHAREDSESSION_CEXT") or not isinstance(
    threading.get_ident, BuiltinFunctionType
):
    parts = None
