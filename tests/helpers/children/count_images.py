"""Train a recipe and write how many images each pass through the model's first layer had.

count_images.py RECIPE FOLDER: the counts of process R go to FOLDER-R.json.
"""

import json
import sys

from helpers.runs import without_drawing
from helpers.watching import images_seen

import hf_cifar
from hf_cifar.distributed import rank

recipe, folder = sys.argv[1:]
with images_seen() as seen, without_drawing():
    hf_cifar.train(recipe, output_dir=folder)
with open(f"{folder}-{rank()}.json", "w") as file:
    json.dump(seen, file)
