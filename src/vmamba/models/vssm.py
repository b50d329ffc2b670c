"""VSSM, the VMamba classifier (arXiv 2401.10166, §4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from vmamba.architecture.config import VSSMConfig
from vmamba.errors import ConfigError
from vmamba.layers.norm import make_norm
from vmamba.models.hub_methods import HubMethods
from vmamba.models.trunk import Trunk, init_weights


class Classifier(nn.Module):
    """Norm, average pooling over the places, linear head."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.head = head


class VSSM(HubMethods, Trunk):
    """A VMamba network that classifies images.

    Args:
        config: a `VSSMConfig`; or leave it out and
        **options: give its fields as keywords, with upstream's names.

    Raises:
        ConfigError, BackendError: an option that is unknown or not legal.
    """

    def __init__(self, config: VSSMConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        norm = make_norm(self.config.norm_layer, self.num_features)
        self.classifier = Classifier(norm, nn.Identity())
        self.reset_classifier(self.config.num_classes)

    def __setattr__(self, name: str, value: Any) -> None:
        """As usual; but a classifier without the parts that the forward pass asks for is refused where it is put in."""
        if name == "classifier" and not (hasattr(value, "norm") and hasattr(value, "head")):
            raise ConfigError(
                f"model.classifier holds the last norm and the head, and a {type(value).__name__} has neither: replace "
                "the head alone, model.reset_classifier(classes) or model.classifier.head = …; reset_classifier(0) "
                "takes it out"
            )
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(b, in_chans, H, W)`` to logits ``(b, num_classes)``.

        Raises:
            InputError: another number of axes or channels, or an image smaller than a patch or than the stages need.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(b, in_chans, H, W)`` to the last stage's normed map ``(b, h, w, c)``, before pooling."""
        x = self.embed(x)
        for stage in self.layers:
            x = stage(x)
        features: Tensor = self.classifier.norm(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed map ``(b, h, w, c)`` to logits, or with ``pre_logits`` to pooled features ``(b, c)``."""
        x = x.mean((1, 2))
        if pre_logits:
            return x
        logits: Tensor = self.classifier.head(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.classifier.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a fresh head of ``num_classes``; 0 takes the head out. ``global_pool`` can only be average pooling."""
        if num_classes < 0:
            raise ConfigError(f"num_classes {num_classes} must not be negative; 0 takes the head out")
        if global_pool not in (None, "avg"):
            raise ConfigError(f"global_pool {global_pool!r} is not supported; VMamba pools by average ('avg')")
        self.config = self.config.replace(num_classes=num_classes)
        self.num_classes = num_classes
        like = next(self.parameters())
        head: nn.Module = nn.Identity()
        if num_classes:
            head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            init_weights(head)
        self.classifier.head = head

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of each stage's map: ``num_chs`` channels, ``reduction`` (pixels of the image a side), and its ``module``."""
        return [
            {"num_chs": dim, "reduction": self.config.stem_stride * 2**stage, "module": f"layers.{stage}.blocks"}
            for stage, dim in enumerate(self.config.dims)
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NHWC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Run the stages and keep their maps, each as its blocks leave it, before the step down to the next stage.

        Args:
            x: images ``(b, in_chans, H, W)``.
            indices: the stages whose maps to keep, in the order given, negative ones from the end; a number ``n``
                stands for the last ``n`` stages, None for all.
            norm: put the last stage's map through the classifier's norm; the other stages have none.
            stop_early: leave out the stages after the last one that is kept.
            output_fmt: axes of the kept maps: ``(b, c, h, w)`` or ``(b, h, w, c)``.
            intermediates_only: return the kept maps alone.

        Returns:
            The kept maps, or ``(features, maps)`` with what `forward_features` gives, ``(b, h, w, c)``; after an early
            stop, with the last map that was computed.

        Raises:
            ConfigError: an index or format that there is not.
            InputError: as `forward`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt {output_fmt!r} is unknown; legal: NCHW, NHWC")
        take = self._stage_indices(indices)
        stages = list(self.stages())[: max(take) + 1 if stop_early else None]
        maps: dict[int, Tensor] = {}
        x = self.embed(x)
        for i, stage in enumerate(stages):
            x = stage.blocks(x)
            if i in take:
                maps[i] = x
            if i < len(stages) - 1:
                x = stage.downsample(x)
        if len(stages) == len(self.layers):
            x = self.classifier.norm(x)
            if norm and len(stages) - 1 in maps:
                maps[len(stages) - 1] = x
        kept = [maps[i] for i in take]
        if output_fmt == "NCHW":
            kept = [feature.permute(0, 3, 1, 2).contiguous() for feature in kept]
        return kept if intermediates_only else (x, kept)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take out what `forward_intermediates` with these ``indices`` does not need, and return them counted from 0.

        Norm and head belong to the last stage and always go with it.

        Args:
            indices: as in `forward_intermediates`.
            prune_norm: take the classifier's norm out.
            prune_head: take the head out.

        Raises:
            ConfigError: an index that there is not.
        """
        take = self._stage_indices(indices)
        count = max(take) + 1
        shorter = count < len(self.layers)
        if shorter:
            self.layers = self.layers[:count]
            list(self.stages())[-1].downsample = nn.Identity()
            self.config = self.config.replace(depths=self.config.depths[:count], dims=self.config.dims[:count])
            self.dims = list(self.config.dims)
            self.num_features = self.embed_dim = self.dims[-1]
        if shorter or prune_norm:
            self.classifier.norm = nn.Identity()
        if shorter or prune_head:
            self.reset_classifier(0)
        return take

    def _stage_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Stages counted from 0, in the order asked for."""
        count = len(self.layers)
        if indices is None:
            indices = count
        asked = range(count - indices, count) if isinstance(indices, int) else indices
        take = [i + count if i < 0 and not isinstance(asked, range) else i for i in asked]
        if not take or not all(0 <= i < count for i in take):
            raise ConfigError(f"feature indices {indices} must name stages out of {-count}..{count - 1}, at least one")
        return take

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters by depth, in timm's notation: the stem, then stages (or blocks), then the head.

        The step down to the next stage goes with the block before it, and so does the classifier's norm.

        Args:
            coarse: one group a stage instead of one a block.
        """
        previous = (99999,)  # timm's sign for "the group before"
        stages = [(r"^layers\.(\d+)", None)]
        blocks = [(r"^layers\.(\d+)\.blocks\.(\d+)", None), (r"^layers\.(\d+)\.downsample", previous)]
        norm = (r"^classifier\.norm", previous)
        return {"stem": r"^patch_embed|^pos_embed", "blocks": [*(stages if coarse else blocks), norm]}
