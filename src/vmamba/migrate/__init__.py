"""Rewriting files that ask for what was removed: behind ``vmamba migrate``."""
