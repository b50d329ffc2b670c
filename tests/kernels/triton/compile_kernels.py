"""A program of its own, since here kernels are interpreted: compiles a model's kernels and prints what came out.

compile_kernels.py CAPABILITY DTYPE TRAINING MODEL_OPTIONS, JSON out.
"""

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import vmamba
from vmamba.bench.kernels import compile_for
from vmamba.inference.warm import launches
from vmamba.kernels.triton.scans import launch

capability, dtype, training, options = sys.argv[1:]
launch.processors = lambda device: 132  # as many as an H100 has
model = vmamba.create_model("vmamba_tiny_s1l8", **json.loads(options))
wanted = launches(model, (128, 3, 224, 224), getattr(torch, dtype), training=training == "train")
with ThreadPoolExecutor(2) as pool:
    found = list(pool.map(lambda one: compile_for(one, int(capability)), wanted))
rows = [{**dataclasses.asdict(made), "constants": one.constants} for made, one in zip(found, wanted, strict=True)]
print(json.dumps(rows))
