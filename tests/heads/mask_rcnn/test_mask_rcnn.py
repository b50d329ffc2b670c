"""The detector as a user meets it: options, results, training, images of several sizes."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba
from vmamba import create_model
from vmamba.architecture.detector_variants import DETECTORS, detector_config
from vmamba.architecture.detectors import MaskRCNNConfig
from vmamba.errors import CheckpointError, ConfigError, InputError
from vmamba.heads.mask_rcnn import DensePart, ImageBatch, MaskRCNN, Truth, prepare
from vmamba.heads.mask_rcnn.pasting import paste_masks
from vmamba.heads.mask_rcnn.preparation import fitted_size, pad, resize
from vmamba.heads.mask_rcnn.regions import levels_of
from vmamba.weights import official_weights

SMALL = {
    "backbone": {
        "dims": [8, 16, 32, 64],
        "depths": [1, 1, 1, 1],
        "ssm_d_state": 1,
        "forward_type": "v05_noz",
        "drop_path_rate": 0.0,
    },
    "neck": {"out_channels": 16},
    "rpn": {"feat_channels": 16, "nms_pre": 50, "nms_pre_train": 50, "max_per_image": 30, "samples": 32},
    "box_head": {"fc_out_channels": 32, "num_classes": 3, "samples": 16, "score_threshold": 0.01},
    "mask_head": {"conv_out_channels": 16, "num_convs": 1},
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskRCNN(**copy.deepcopy(SMALL))


def truth(*rows, size):
    masks = torch.zeros(len(rows), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2, _) in zip(masks, rows, strict=True):
        mask[y1:y2, x1:x2] = True
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Truth(values[:, :4], values[:, 4].long(), masks)


def batch(*sizes):
    torch.manual_seed(1)
    return ImageBatch(pad([torch.randn(3, *size) for size in sizes]), sizes, sizes)


# --- options


def test_named_detectors_are_built():
    assert {"mask_rcnn_vmamba_tiny_s1l8", "mask_rcnn_vanilla_vmamba_tiny", "mask_rcnn_vmamba_nano"} <= set(DETECTORS)
    for name in DETECTORS:
        config = detector_config(name, num_classes=7)
        assert (config.num_classes, config.mask_head.num_classes) == (7, 7)
        assert MaskRCNNConfig.from_dict(config.to_dict()) == config
    model = MaskRCNN(config=detector_config("mask_rcnn_vmamba_nano", num_classes=7))
    assert model.roi_head.bbox_head.fc_cls.out_features == 8
    with pytest.raises(ConfigError, match="did you mean 'mask_rcnn_vmamba_nano'"):
        detector_config("mask_rcnn_vmamba_nan")


def test_configuration_goes_to_a_dict_and_back(model):
    assert MaskRCNNConfig.from_dict(model.config.to_dict()) == model.config
    again = MaskRCNN(**model.config.to_dict())
    again.load_state_dict(model.state_dict())


def test_configuration_is_changed():
    config = MaskRCNNConfig.from_dict(SMALL)
    changed = config.replace(num_classes=5, neck={"out_channels": 32}, drop_path_rate=0.3, dims=[4, 8, 16, 32])
    assert (changed.num_classes, changed.mask_head.num_classes) == (5, 5)
    assert changed.rpn.in_channels == changed.box_head.in_channels == 32
    assert changed.backbone.drop_path_rate == 0.3
    assert changed.neck.in_channels == (4, 8, 16, 32)
    assert config.replace() == config
    assert config.replace(selective_scan_backend="torch").backbone.selective_scan_backend == "torch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nek": {}}, "no part of a Mask R-CNN; did you mean 'neck'"),
        ({"neck": {"outchannels": 3}}, "neck: 'outchannels' is not an option"),
        ({"neck": {"in_channels": [1, 2, 3, 4]}}, "are not the backbone's dims"),
        ({"neck": {"num_outs": 3}}, "must be at least the backbone's 4"),
        ({"rpn": {"in_channels": 7}}, "rpn: in_channels 7 must be the neck's out_channels 16"),
        ({"rpn": {"strides": [4, 8]}}, "must have one entry for each of neck's 5 levels"),
        ({"rpn": {"nms_iou": 1.5}}, "nms_iou 1.5 must not be above 1"),
        ({"box_head": {"num_classes": 0}}, "num_classes 0 must be positive"),
        ({"mask_head": {"num_classes": 4}}, "box_head has 3 classes and mask_head 4"),
        ({"box_head": {"stds": [1, 1]}}, "must be four numbers"),
        ({"backbone": {"out_indices": [0, 1]}}, r"out_indices \[0, 1\] must be all 4 stages"),
        ({"rpn": 3}, "rpn 3 is not a mapping of options"),
    ],
)
def test_wrong_options(change, message):
    parts = copy.deepcopy(SMALL)
    for name, values in change.items():
        parts[name] = {**parts.get(name, {}), **values} if isinstance(values, dict) else values
    with pytest.raises(ConfigError, match=message):
        MaskRCNNConfig.from_dict(parts)


def test_a_backbone_starts_from_a_classifier(tmp_path):
    torch.manual_seed(5)
    classifier = vmamba.VSSM(**SMALL["backbone"], num_classes=4)
    vmamba.save_weights(tmp_path / "classifier.safetensors", classifier.state_dict())
    model = MaskRCNN(**{**SMALL, "backbone": {**SMALL["backbone"], "pretrained": tmp_path / "classifier.safetensors"}})
    own, theirs = model.backbone.state_dict(), classifier.state_dict()
    shared = [key for key in theirs if key in own]
    assert len(shared) > 40
    assert all(torch.equal(own[key], theirs[key]) for key in shared)


# --- detecting


def test_detections_of_images_of_several_sizes(model):
    images = batch((64, 96), (50, 60))
    images = ImageBatch(images.pixels, images.sizes, ((128, 192), (50, 60)))
    found = model.eval()(images)
    assert len(found) == 2
    for one, (h, w) in zip(found, images.original_sizes, strict=True):
        assert len(one) > 0
        assert one.masks.shape == (len(one), h, w)
        assert one.masks.dtype == torch.bool
        assert (one.boxes >= 0).all()
        assert (one.boxes[:, 2] <= w).all()
        assert (one.boxes[:, 3] <= h).all()
        assert (one.scores[1:] <= one.scores[:-1]).all()
        assert (one.labels < 3).all()
        assert len(one.above(2.0)) == 0
    # An image's results do not depend on what it is padded with others to, beyond what its border sees.
    assert (found[0].boxes[:, 2] > 96).any()  # twice the network's input


def test_predicting_takes_images_as_they_come(model):
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    model.train()
    results = [model.predict([image], fit=(96, 64))[0] for image in (array, tensor, Image.fromarray(array))]
    assert model.training
    assert results[0].masks.shape[1:] == (40, 60)
    for other in results[1:]:
        assert torch.equal(other.boxes, results[0].boxes)
        assert torch.equal(other.masks, results[0].masks)


def test_nothing_found(model):
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.bias[-1] = 100.0  # all background
    (found,) = model.eval()(torch.randn(1, 3, 64, 64))
    assert (len(found), found.masks.shape) == (0, (0, 64, 64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.train()(torch.zeros(1, 3, 64, 64)), "needs targets"),
        (lambda m: m.eval()(torch.zeros(3, 64, 64)), r"must be \(b, c, H, W\)"),
        (lambda m: m.eval()(torch.zeros(1, 3, 64, 64), [(65, 64)]), "do not fit the images"),
        (lambda m: m.eval()(torch.zeros(1, 3, 64, 64), [(64, 64)] * 2), "do not fit the images"),
        (lambda m: m(torch.zeros(2, 3, 64, 64), targets=[]), "0 targets were given for 2 images"),
        (lambda m: m.predict([]), "no image to prepare"),
        (lambda m: m.predict([torch.zeros(3, 4, 4)]), "must be uint8"),
        (lambda m: m.predict([torch.zeros(3, 0, 4, dtype=torch.uint8)]), "has no pixels"),
    ],
)
def test_wrong_inputs(model, call, message):
    with pytest.raises(InputError, match=message):
        call(model)


def test_the_dense_part_is_exported(model):
    part, image = DensePart(model.eval()), torch.randn(1, 3, 64, 64)
    with vmamba.backend("torch"), torch.no_grad():
        want = part(image)
        found = torch.export.export(part, (image,)).module()(image)
    for own, theirs in zip(found, want, strict=True):
        for a, b in zip(own, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_a_whole_detector_is_not():
    from vmamba.export.source import load_source

    with pytest.raises(ConfigError, match="is a detector, which cannot be exported whole"):
        load_source("mask_rcnn_vmamba_nano")


def test_the_backbone_inside_is_optimized(model):
    image = torch.randn(1, 3, 64, 64)
    (want,) = model.eval()(image)
    model.backbone = vmamba.optimize(model.backbone, example=image, compile=False)
    with torch.inference_mode():
        (found,) = model(image)
    assert abs(len(found) - len(want)) <= 1
    torch.testing.assert_close(found.scores[:3], want.scores[:3], atol=1e-4, rtol=0)


# --- weights


def test_files_are_recognised(model, tmp_path):
    whole = create_model("mask_rcnn_vmamba_nano", num_classes=4)
    torch.save({"state_dict": whole.state_dict(), "meta": {}}, tmp_path / "epoch_1.pth")
    loaded = vmamba.load(tmp_path / "epoch_1.pth")
    assert loaded.config.replace(drop_path_rate=0.05) == whole.config.replace(drop_path_rate=0.05)
    assert torch.equal(loaded.roi_head.bbox_head.fc_cls.weight, whole.roi_head.bbox_head.fc_cls.weight)
    other = create_model("mask_rcnn_vmamba_nano", pretrained=tmp_path / "epoch_1.pth", num_classes=2)
    assert torch.equal(other.neck.lateral_convs[0].conv.weight, whole.neck.lateral_convs[0].conv.weight)
    assert other.roi_head.bbox_head.fc_cls.out_features == 3
    backbone = vmamba.Backbone_VSSM(pretrained=tmp_path / "epoch_1.pth", config=whole.config.backbone)
    assert torch.equal(backbone.outnorm3.weight, whole.backbone.outnorm3.weight)


def test_weights_that_do_not_fit_are_refused_with_the_mend(model):
    def refused(weights, other, words):
        with pytest.raises(CheckpointError) as caught:
            vmamba.load_weights(other, weights)
        assert words in str(caught.value)

    whole, classifier = model.state_dict(), vmamba.VSSM(model.config.backbone)
    more = MaskRCNN(**{**SMALL, "box_head": {**SMALL["box_head"], "num_classes": 5}})
    refused(
        whole, more, "only the head differs, 3 classes there and 5 here: create_model(…, pretrained=…, num_classes=5)"
    )
    for other in (classifier, vmamba.Backbone_VSSM(config=model.config.backbone)):
        refused(whole, other, "they look like a detector's: Backbone_VSSM(pretrained=…) takes the backbone out of them")
        refused(whole, other, "of them, vmamba.load(…) builds the whole detector")
    refused(whole, MaskRCNN(**{**SMALL, "neck": {"out_channels": 24}}), "belong to, a Mask R-CNN on a VSSM of depths")
    dense = {name: value for name, value in whole.items() if not name.startswith("roi_head.")}
    refused(dense, classifier, "they look like a segmenter's or detector's: Backbone_VSSM(pretrained=…) takes")
    segmenter = create_model("upernet_vmamba_nano", num_classes=2).state_dict()
    refused(segmenter, create_model("vmamba_nano"), "of them, vmamba.load(…) builds the whole segmenter")


def test_released_files():
    assert official_weights("mask_rcnn_vmamba_tiny_s1l8").file_name == "mask_rcnn_vssm_fpn_coco_tiny_s_epoch_12.pth"
    assert official_weights("mask_rcnn_vmamba_small_s2l15_3x").file_name.endswith("small_ms_3x_epoch_32.pth")
    assert official_weights("mask_rcnn_vmamba_base_s2l15_bs8").key == "state_dict"


# --- training


def test_losses_have_all_gradients_and_a_seed_repeats_them(model):
    images = batch((64, 96), (50, 60))
    targets = [truth((8, 8, 40, 40, 0), (50, 10, 90, 60, 2), size=(64, 96)), truth((5, 5, 30, 45, 1), size=(50, 60))]
    losses = model(images, targets=targets, generator=torch.Generator().manual_seed(0))
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"]
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    again = model(images, targets=targets, generator=torch.Generator().manual_seed(0))
    assert {name: value.item() for name, value in again.items()} == {n: v.item() for n, v in losses.items()}
    other = model(images, targets=targets, generator=torch.Generator().manual_seed(1))
    assert other["loss_cls"].item() != losses["loss_cls"].item()


def test_a_batch_without_objects_trains(model):
    losses = model(batch((64, 64)), targets=[truth(size=(64, 64))])
    assert losses["loss_mask"].item() == losses["loss_bbox"].item() == losses["loss_rpn_bbox"].item() == 0
    assert losses["loss_cls"].item() > 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_learns_one_image(model):
    images, targets = batch((64, 64)), [truth((10, 12, 42, 40, 1), size=(64, 64))]
    images.pixels[:, :, 12:40, 10:42] += 2
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(images, targets=targets, generator=generator).values()).backward()
        optimizer.step()
    (found,) = model.eval()(images)
    assert found.labels[0] == 1
    assert found.scores[0] > 0.5
    torch.testing.assert_close(found.boxes[0], targets[0].boxes[0], atol=3, rtol=0)
    shared = (found.masks[0] & targets[0].masks[0]).sum() / (found.masks[0] | targets[0].masks[0]).sum()
    assert shared > 0.8


# --- parts


def test_levels_by_size():
    sides = torch.tensor([10.0, 111, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    assert levels_of(boxes, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert levels_of(torch.zeros(1, 4), 4).tolist() == [0]  # no area


def test_sizes_of_images():
    assert fitted_size((480, 640)) == (800, 1067)
    assert fitted_size((640, 480)) == (1067, 800)
    assert fitted_size((100, 1000)) == (133, 1333)
    assert prepare([torch.zeros(3, 480, 640, dtype=torch.uint8)]).pixels.shape == (1, 3, 800, 1088)


def test_resizing_against_exact_interpolation():
    image = torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in ((20, 30), (80, 99), (37, 100), (1, 1)):
        exact = torch.nn.functional.interpolate(image[None].double(), size=size, mode="bilinear")[0]
        assert (resize(image, size).double() - exact).abs().max() < 1.6  # the arithmetic truncates
    assert resize(image, (37, 53)) is image


def test_masks_of_boxes_beyond_the_image_and_without_area():
    maps = torch.ones(4, 28, 28)
    boxes = torch.tensor([[-5.0, -5, 5, 5], [100, 100, 120, 120], [3, 3, 3, 9], [2, 2, 6, 4]])
    masks = paste_masks(maps, boxes, (10, 12))
    assert masks.shape == (4, 10, 12)
    assert masks[0].sum() == 25
    assert masks[1].sum() == 0
    assert masks[3].nonzero().amin(0).tolist() == [2, 2]
    assert masks[3].nonzero().amax(0).tolist() == [3, 5]
