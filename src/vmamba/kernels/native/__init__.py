"""The compiled CPU kernels (``csrc/``): the library, what its functions take, and a Python function for each."""
