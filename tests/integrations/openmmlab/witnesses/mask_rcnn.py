# ruff: noqa: C408 — as such files are written
# A configuration as upstream's are: mmdetection's own of Swin Transformer, with another backbone over its keywords.
custom_imports = dict(imports=["vmamba.integrations.openmmlab"], allow_failed_imports=False)
_base_ = ["mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"]
model = dict(backbone=dict(type="MM_VSSM", out_indices=(0, 1, 2, 3), pretrained=""))
