"""The compiled part, which is optional; everything else is in setup.cfg."""

import glob
import os
import platform
import sysconfig

from setuptools import Extension, setup

COMPILED = Extension(
    "sharedsession._compiled",
    sorted(glob.glob("sharedsession/_c/*.c")),
    depends=sorted(glob.glob("sharedsession/_c/*.h")),
    optional=True,
)

# It relies on the interpreter's lock, as only one that was made for it may.
wanted = (
    platform.python_implementation() == "CPython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not os.environ.get("DISABLE_SHAREDSESSION_CEXT")
)

setup(ext_modules=[COMPILED] if wanted else [])
