"""Several labels for each image, or none."""
