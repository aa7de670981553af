"""Classify pictures with onnxruntime, numpy and PIL alone: `GRAPH PICTURES`.

Prints a JSON list with the number of the best class of each picture in the folder PICTURES, in
order of names. A graph that takes uint8 gets the pictures as they are, another one gets the arrays
of pixels in the .npy files there.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import PIL.Image

assert importlib.util.find_spec("torch") is None, "this environment should have no torch"
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(entry,) = session.get_inputs()
suffix = ".png" if entry.type == "tensor(uint8)" else ".npy"
answers = []
for path in sorted(Path(sys.argv[2]).glob(f"*{suffix}")):
    picture = np.load(path) if suffix == ".npy" else np.asarray(PIL.Image.open(path))
    (logits,) = session.run(["logits"], {entry.name: picture[None]})[0]
    answers.append(int(logits.argmax()))
print(json.dumps(answers))
