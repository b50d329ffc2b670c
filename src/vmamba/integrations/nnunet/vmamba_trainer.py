"""``nnUNetTrainerVMamba``: ``nnUNetv2_train DATASET 3d_fullres FOLD -tr nnUNetTrainerVMamba``.

nnU-Net imports this file by itself, from the folder that ``nnUNet_extTrainer`` names; it is not a part of what
``vmamba`` imports. Subclass the trainer in a file of your own to change what is set here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from vmamba.integrations.nnunet.network import unet_of_plans
from vmamba.models.trunk import undecayed


class nnUNetTrainerVMamba(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 — the name says which library's it is
    """nnU-Net's own training of a `UNet3D` that has the resolutions and widths of the plans.

    AdamW takes the place of SGD: state-space parameters need steps of one size. All else is nnU-Net's.
    """

    #: Fields of `VolumeConfig` besides those that the plans give.
    network_options: ClassVar[dict[str, Any]] = {}

    # nnU-Net stores the arguments by their names in this signature, so subclasses need the same.
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-3
        self.weight_decay = 0.01

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network for training and for prediction, which must be the same."""
        return unet_of_plans(
            configuration_manager.network_arch_init_kwargs,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
            **cls.network_options,
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW without decay of vectors and of the recurrence's parameters, and nnU-Net's schedule."""
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        own = undecayed(self.network)
        for name, parameter in self.network.named_parameters():
            (others if parameter.dim() < 2 or name in own else decayed).append(parameter)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
