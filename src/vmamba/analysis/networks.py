"""Networks to compare by name: ours, and any of timm's that has maps, perhaps with options of its own in brackets."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from vmamba.errors import ConfigError, nearest
from vmamba.models import create_model, list_models

#: Options that a caller sets itself.
_TAKEN = ("pretrained", "features_only", "in_chans", "img_size", "imgsize")


@dataclass(frozen=True)
class NetworkName:
    """A name, and what differs from the network that it stands for.

    Attributes:
        name: one of ours or timm's.
        options: keywords of `vmamba.create_model` or ``timm.create_model``.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> NetworkName:
        """From ``"resnet18"`` or ``"swin_tiny_patch4_window7_224(embed_dim=32, depths=[1,1,2,1])"``.

        Raises:
            ConfigError: what stands in the brackets are no keywords with plain values, or one is set otherwise.
        """
        name, bracket, rest = text.partition("(")
        if not bracket:
            return cls(text)
        wrong = f"{text!r}: want a name, or with options NAME(option=value, …) of numbers, texts, True, False and lists"
        try:
            call = ast.parse(f"f({rest}", mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
                raise ConfigError(wrong)
            options = [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in call.keywords]
        except (SyntaxError, ValueError) as error:
            raise ConfigError(wrong) from error
        given: dict[str, Any] = {}
        for option, value in options:
            if option is None or option in given:
                raise ConfigError(wrong if option is None else f"{text!r}: {option} comes twice; give it once")
            if option in _TAKEN:
                raise ConfigError(f"{text!r}: {option} is no option that can be given here; leave it out")
            given[option] = value
        return cls(name.strip(), given)

    def __str__(self) -> str:
        """As it is parsed."""
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.options.items())})" if self.options else self.name

    def build(self, pretrained: bool, image_size: int) -> nn.Module:
        """Ours, or timm's as `timm_network`.

        Args:
            pretrained: with trained weights, which are downloaded, or fresh ones.
            image_size: pixels a side, for networks that are built for one size.

        Raises:
            ConfigError: nobody knows it, or it cannot be built like this.
        """
        if self.name in list_models():
            return create_model(self.name, pretrained=pretrained, **self.options)
        try:
            return timm_network(self.name, pretrained, image_size=image_size, **self.options)
        except ConfigError as error:
            import timm

            if timm.is_model(self.name):
                raise
            raise ConfigError(f"{error}; it is no model of ours either{nearest(self.name, list_models())}") from error


class MapNetwork(nn.Module):
    """One of timm's networks as its last map.

    Args:
        network: made with ``features_only=True``.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.channels: int = network.feature_info.channels()[-1]

    def forward(self, images: Tensor) -> Tensor:
        """``(b, in_chans, H, W) → (b, c, h, w)``."""
        last: Tensor = self.network(images)[-1]
        return last if last.shape[1] == self.channels else last.permute(0, 3, 1, 2)  # Swin's are channels-last


def timm_network(
    name: str, pretrained: bool = False, in_chans: int = 3, image_size: int | None = None, **options: Any
) -> MapNetwork:
    """Any of timm's networks that has maps, such as ``resnet50`` or ``swin_tiny_patch4_window7_224``.

    Args:
        name: the network's.
        pretrained: with timm's trained weights, which are downloaded, or fresh ones.
        in_chans: of the images.
        image_size: pixels a side, for networks that are built for one size.
        options: the network's own.

    Raises:
        ConfigError: timm does not know it, it has no maps, or it cannot be built with these options.
    """
    import timm

    make = partial(timm.create_model, name, pretrained=pretrained, in_chans=in_chans, features_only=True, **options)
    try:
        try:
            network = make() if image_size is None else make(img_size=image_size)
        except TypeError:  # to most networks any size will do, and they have no such option
            network = make()
    except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError, ArithmeticError, LookupError) as error:
        asked = NetworkName(name, options)
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"timm cannot make feature maps of '{asked}': {why}") from error
    return MapNetwork(network).eval()
