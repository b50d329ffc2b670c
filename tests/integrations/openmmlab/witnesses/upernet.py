# ruff: noqa: C408 — as such files are written
# A configuration as upstream's are: mmsegmentation's own of Swin Transformer, with another backbone over its keywords.
custom_imports = dict(imports=["vmamba.integrations.openmmlab"], allow_failed_imports=False)
_base_ = ["mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"]
model = dict(backbone=dict(type="MM_VSSM", out_indices=(0, 1, 2, 3), pretrained=""))
