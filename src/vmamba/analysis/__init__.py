"""Looking inside a model: each analysis returns arrays, a plot of it is a function apart."""
