"""How a folder of automatic labels is laid out, for the side that writes it and the one that reads.

`manifest.json` says what the labels were made with, `images.jsonl` has one line for each image, and
the label files lie beside them under the names given here. Each label file is a PNG with a text
chunk, whose keyword is `FORMAT`, about what is in it.
"""

from __future__ import annotations

FORMAT = "hmsa-autolabel"  # also the keyword of the text chunk inside each label file
# Raised when a reader of today could misunderstand what is written.
VERSION = 1
MANIFEST = "manifest.json"
IMAGES = "images.jsonl"

# Images of Cityscapes end in this; their labels carry another ending in its place.
CITYSCAPES_SUFFIX = "_leftImg8bit"
RAW_LABEL_SUFFIX = "_gtAuto_labelIds"
TRAIN_LABEL_SUFFIX = "_gtAuto_labelTrainIds"
CITYSCAPES_CONFIDENCE_SUFFIX = "_gtAuto_confidence"

# Labels of all other images are called as their image is.
CONFIDENCE_SUFFIX = "_confidence"
