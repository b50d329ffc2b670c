"""Both libraries in one process, since most of the time goes into their imports. Prints one JSON object."""

from __future__ import annotations

import json
import sys

import detection
import segmentation
from mmengine.registry import init_default_scope

configurations = json.loads(sys.argv[1])
said = {}
for scope, program in (("mmseg", segmentation), ("mmdet", detection)):
    init_default_scope(scope)
    said[program.__name__] = program.report(configurations[program.__name__])
print(json.dumps(said))
