"""Images out of files, archives and arrays."""
