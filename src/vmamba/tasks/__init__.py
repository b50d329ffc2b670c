"""What is learnt: the one place that knows it. `protocol` says what a task is, `registry` lists those there are."""
