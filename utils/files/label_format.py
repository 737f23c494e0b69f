"""The format of automatic labels on disk, for the side that writes it and the side that reads it.

A folder of automatic labels holds one PNG for each image, whose text chunk of the keyword `FORMAT`
says what the label was made with, a list of them (`IMAGES`, one JSON object a line) and a summary
(`MANIFEST`).
"""

from __future__ import annotations

# The keyword of the text chunk, and what `format` says in the manifest.
FORMAT = "hmsa-autolabel"
# Raised when a reader of today could misunderstand what is written.
VERSION = 1
MANIFEST = "manifest.json"
IMAGES = "images.jsonl"
