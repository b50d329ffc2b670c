"""The models inside other libraries: encoders of segmentation-models-pytorch, backbones of torchvision's detectors."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import vmamba
import vmamba.timm
from vmamba import ConfigError
from vmamba.models import model_config

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "drop_path_rate": 0.0}


@pytest.mark.parametrize("architecture", [smp.Unet, smp.FPN, smp.UPerNet])
def test_segmentation(architecture):
    """Masks in the image's size, and one step of training that reaches every parameter and lowers the loss."""
    torch.manual_seed(0)
    model = architecture("tu-vmamba_nano", encoder_weights=None, classes=3, drop_path_rate=0.0)
    assert model.encoder.out_channels == [3, 0, 32, 64, 128, 256]
    images, target = torch.randn(2, 3, 64, 96), torch.randint(3, (2, 64, 96))

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # the decoders' dropout, alike each time
        masks = model(images)
        assert masks.shape == (2, 3, 64, 96)
        return nn.functional.cross_entropy(masks, target)

    before = loss()
    before.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    assert loss() < before


@pytest.mark.parametrize("name", ["vanilla_vmamba_tiny", "vmamba_tiny_s2l5", "vmamba_tiny_s1l8"])
def test_each_family_segments(name):
    model = smp.FPN(f"tu-{name}", encoder_weights=None, in_channels=1, classes=2, **TINY).eval()
    assert model.encoder.out_channels == [1, 0, 8, 16, 24, 32]
    assert model(torch.randn(1, 1, 32, 64)).shape == (1, 2, 32, 64)


def test_shallower_encoder():
    model = smp.Unet("tu-vmamba_nano", encoder_weights=None, encoder_depth=4, decoder_channels=(64, 32, 16, 8)).eval()
    assert model.encoder.out_channels == [3, 0, 32, 64, 128]
    assert model(torch.randn(1, 3, 48, 32)).shape == (1, 1, 48, 32)


def test_encoder_from_weights(tmp_path):
    donor = vmamba.create_model("vmamba_nano").eval()
    vmamba.save_weights(tmp_path / "weights.safetensors", donor.state_dict())
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    model = smp.Unet("tu-vmamba_nano", encoder_weights=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(1, 3, 64, 64)
    for got, want in zip(model.encoder(x)[2:], donor.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(got, want)


def test_dilated_encoders_are_refused():
    with pytest.raises(ConfigError, match="output_stride 16 is not supported; the stages' strides are 4, 8, 16 and 32"):
        smp.DeepLabV3Plus("tu-vmamba_nano", encoder_weights=None)


class Pyramid(nn.Module):
    """Stage maps to a feature pyramid, as torchvision's detectors take it."""

    def __init__(self, body: nn.Module, channels: list[int], out_channels: int = 16) -> None:
        super().__init__()
        self.body = body
        self.out_channels = out_channels
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn({str(i): feature for i, feature in enumerate(self.body(images))})


def backbone(kind: str) -> Pyramid:
    if kind == "timm":
        body = timm.create_model("vmamba_nano", features_only=True, **TINY)
        return Pyramid(body, body.feature_info.channels())
    body = vmamba.Backbone_VSSM(**model_config("vmamba_nano", **TINY).to_dict())
    return Pyramid(body, body.dims)


def train_and_detect(detector: nn.Module, labels: range = range(1, 3)) -> None:
    """One step on two images of unlike sizes, then a detection; every parameter of the backbone must learn."""
    torch.manual_seed(0)
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 40)]
    targets = []
    for image in images:
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        mask[:, 8:36, 4:30] = 1
        targets.append({"boxes": torch.tensor([[4.0, 8.0, 30.0, 36.0]]), "labels": torch.tensor([1]), "masks": mask})
    losses = detector.train()(images, targets)
    loss = sum(losses.values())
    assert loss.isfinite()
    loss.backward()
    assert [name for name, p in detector.backbone.body.named_parameters() if p.grad is None] == []
    torch.optim.SGD(detector.parameters(), lr=1e-3).step()
    with torch.no_grad():
        found = detector.eval()(images)
    for image, one in zip(images, found, strict=True):
        boxes = one["boxes"]
        assert boxes.shape == (len(one["scores"]), 4)
        assert len(boxes) > 0
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor(image.shape[:0:-1]).repeat(2)).all()
        assert set(one["labels"].tolist()) <= set(labels)


@pytest.mark.parametrize("kind", ["timm", "Backbone_VSSM"])
def test_faster_rcnn(kind):
    train_and_detect(FasterRCNN(backbone(kind), num_classes=3, min_size=64, max_size=96, box_score_thresh=0.0))


@pytest.mark.long
def test_mask_rcnn():
    detector = MaskRCNN(backbone("Backbone_VSSM"), num_classes=3, min_size=64, max_size=96, box_score_thresh=0.0)
    train_and_detect(detector)


@pytest.mark.long
def test_retina_net():
    detector = RetinaNet(backbone("Backbone_VSSM"), num_classes=3, min_size=64, max_size=96, score_thresh=0.0)
    train_and_detect(detector, labels=range(3))  # it has no background class
