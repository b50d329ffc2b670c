"""Stand-ins for mamba-ssm and its kernels: what is written against them runs where they are not installed.

Projects derived from VMamba and Mamba import ``mamba_ssm``, ``causal_conv1d`` and compiled modules such as
``selective_scan_cuda``, which need nvcc and an NVIDIA GPU. After `install`, or inside ``with standing_in():``, those
names are found, and compute with this package's kernels on whatever machine this is. A package that is installed is
left alone unless ``replace=True`` is given.

No distribution is faked: ``importlib.metadata.version("mamba_ssm")`` still says that there is none, so a library that
asks there first (transformers does) goes on with its own fallback.
"""

from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError
from vmamba.integrations.mamba_ssm.standing import install, standing_in

__all__ = ["NotProvidedError", "install", "standing_in"]
