"""Everything is in setup.cfg; this is for tools that look for a setup.py."""

from setuptools import setup

setup()
