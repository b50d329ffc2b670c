"""Stand-ins for compiled modules: each file has the functions of the one of its name, with the same arguments."""
