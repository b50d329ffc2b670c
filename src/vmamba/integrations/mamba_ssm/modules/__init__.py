"""What stands in for mamba-ssm's Python modules; each file's ``__all__`` is what the foreign module offers.

Arguments, keys, shapes and numbers are mamba-ssm's (1.0 to 2.3) and those of the vision forks; the code is our own.
"""
