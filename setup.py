"""The compiled part, which is optional; everything else is in setup.cfg."""

import os
import platform
import sysconfig

from setuptools import Extension, setup

READS = Extension("sharedsession._reads", ["sharedsession/_reads.c"], optional=True)

# It relies on the interpreter's lock, as only one that was made for it may.
wanted = (
    platform.python_implementation() == "CPython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not os.environ.get("DISABLE_SHAREDSESSION_CEXT")
)

setup(ext_modules=[READS] if wanted else [])
