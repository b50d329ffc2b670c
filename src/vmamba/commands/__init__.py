"""The commands: for each, its options and the task it calls.

Tasks are imported inside the functions that call them: ``vmamba --help`` should not wait for timm or matplotlib.
"""
