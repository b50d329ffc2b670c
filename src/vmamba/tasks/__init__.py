"""What the commands do: each task is a function that returns data; the command line prints it."""
