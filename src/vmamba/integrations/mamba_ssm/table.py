"""Which foreign modules have a stand-in, and which of this package's modules computes for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Offer:
    """What one foreign module offers.

    Attributes:
        about: what it does, for its docstring.
        whole: module under `vmamba.integrations.mamba_ssm` of which it offers all that ``__all__`` lists.
        names: further names, each with the module under `vmamba.integrations.mamba_ssm` that has it.
    """

    about: str
    whole: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


_SCAN = "modules.selective_scan_interface"
_MAMBA = "modules.mamba_simple"

TABLE: Mapping[str, Offer] = {
    # Compiled modules.
    "selective_scan_cuda": Offer("mamba-ssm's scan: fwd and bwd", "compiled.selective_scan_cuda"),
    "selective_scan_cuda_oflex": Offer("VMamba's scan with float32 output", "compiled.selective_scan_cuda_oflex"),
    "selective_scan_cuda_core": Offer(
        "VMamba's scan with output in the input's dtype", "compiled.selective_scan_cuda_core"
    ),
    "causal_conv1d_cuda": Offer("causal-conv1d's three functions", "compiled.causal_conv1d_cuda"),
    # Python packages.
    "causal_conv1d": Offer(
        "the causal depthwise convolution",
        names=dict.fromkeys(
            ("causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states"), "causal_conv1d"
        ),
    ),
    "causal_conv1d.causal_conv1d_interface": Offer("the causal depthwise convolution", "causal_conv1d"),
    "causal_conv1d.causal_conv1d_varlen": Offer(
        "last inputs of packed sequences",
        names=dict.fromkeys(("causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"), "causal_conv1d"),
    ),
    "causal_conv1d.cpp_functions": Offer(
        "forward, backward and step, for autograd functions",
        names=dict.fromkeys(
            ("causal_conv1d_fwd_function", "causal_conv1d_bwd_function", "causal_conv1d_update_function"),
            "compiled.causal_conv1d_cuda",
        ),
    ),
    "selective_scan": Offer("VMamba's early package", "selective_scan"),
    "mamba_ssm": Offer(
        "Mamba and its scan",
        names={
            "Mamba": _MAMBA,
            "Mamba2": "mamba2.layer",
            "MambaLMHeadModel": "modules.mixer_seq_simple",
            **dict.fromkeys(("selective_scan_fn", "mamba_inner_fn", "bimamba_inner_fn"), _SCAN),
        },
    ),
    "mamba_ssm.ops": Offer("the scan and the norms"),
    "mamba_ssm.ops.selective_scan_interface": Offer("the scan and Mamba's inner function", _SCAN),
    "mamba_ssm.ops.triton": Offer("the norms and the step of a scan"),
    "mamba_ssm.ops.triton.layernorm": Offer("RMSNorm and norms of sums", "modules.layernorm"),
    "mamba_ssm.ops.triton.layer_norm": Offer("RMSNorm and norms of sums", "modules.layer_norm"),
    "mamba_ssm.ops.triton.selective_state_update": Offer("one step of a scan", "modules.selective_state_update"),
    "mamba_ssm.ops.triton.layernorm_gated": Offer("Mamba-2's norms", "mamba2.layernorm_gated"),
    "mamba_ssm.ops.triton.ssd_combined": Offer("Mamba-2's scan", "mamba2.ssd_combined"),
    "mamba_ssm.modules": Offer("Mamba and its block"),
    "mamba_ssm.modules.mamba_simple": Offer("Mamba and its block", _MAMBA),
    "mamba_ssm.modules.block": Offer("the residual block of the later releases", "modules.block"),
    "mamba_ssm.modules.mlp": Offer("the gated MLP", "modules.mlp"),
    "mamba_ssm.modules.mamba2": Offer("Mamba-2", "mamba2.layer"),
    "mamba_ssm.models": Offer("the language model"),
    "mamba_ssm.models.mixer_seq_simple": Offer("the language model and its layers", "modules.mixer_seq_simple"),
    "mamba_ssm.models.config_mamba": Offer("the language model's configuration", "modules.config_mamba"),
    "mamba_ssm.utils": Offer("generation and files"),
    "mamba_ssm.utils.generation": Offer("generation of text", "modules.generation"),
    "mamba_ssm.utils.hf": Offer("files from the hub", "modules.hf"),
}

#: The release whose names and arguments each family follows.
RELEASES: Mapping[str, str] = {
    "selective_scan_cuda": "1.2.2",
    "selective_scan_cuda_oflex": "0.0.2",
    "selective_scan_cuda_core": "0.0.2",
    "causal_conv1d_cuda": "1.4.0",
    "causal_conv1d": "1.4.0",
    "selective_scan": "0.0.2",
    "mamba_ssm": "1.2.2",
}
FAMILIES = tuple(RELEASES)
#: Families that are one compiled file each.
COMPILED = tuple(name for name in FAMILIES if name.endswith(("_cuda", "_oflex", "_core")))

#: Modules that look alike and are not, each with the reason.
REFUSED: Mapping[str, str] = {
    "selective_scan_cuda_oflex_rh": "it is another operator, which takes no C and returns the states; build it from "
    "its project",
}


def family_of(name: str) -> str:
    """The family that a foreign module belongs to: its first word."""
    return name.partition(".")[0]


def is_package(name: str) -> bool:
    """Whether the foreign module has submodules."""
    return any(other.startswith(name + ".") for other in TABLE)


def submodules(name: str) -> list[str]:
    """The names of its submodules, without its own."""
    inner = [other.removeprefix(name + ".") for other in TABLE if other.startswith(name + ".")]
    return [word for word in inner if "." not in word]
