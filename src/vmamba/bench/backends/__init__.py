"""What scan backends run on this machine, and how well: behind ``vmamba backends``."""
