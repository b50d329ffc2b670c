"""This package's models inside other libraries; each module is imported by its user."""
