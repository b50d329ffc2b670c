"""The command line: each command parses its options, calls one function of another floor, and prints what it returns.

What a command calls is imported inside the function that calls it: ``vmamba --help`` should not wait for timm or
matplotlib.
"""

from vmamba.cli.main import main

__all__ = ["main"]
