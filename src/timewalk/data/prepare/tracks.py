"""Videos of one object with a box a frame: GOT-10k, and generated ones in its layout.

Sheet: dense-transfer, section 4. ``<subset>/list.txt`` names the sequences;
``<subset>/<sequence>/`` holds ``00000001.jpg`` and so on, ``groundtruth.txt`` (x,y,w,h a line),
``cover.label``, ``absence.label``, ``cut_by_image.label`` and ``meta_info.ini``. Of the subset
`test` only the first box is given out. ``manifest.json`` (kind `labelled_tracks`) is small;
``sequences.jsonl`` beside it has one sequence a line (:mod:`timewalk.data.tracks` reads both).
The digest is over names and sizes of frames, and the bytes of the other files.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from timewalk.artefacts import read_json, sha256_file, write_manifest, write_text
from timewalk.config.dense import BoxVideos, GOT10k, GOT10kShapes
from timewalk.data.generated_tracks import moving_object, write_got10k
from timewalk.data.prepare.archive import fetched, located, unverified
from timewalk.data.prepare.base import check_output
from timewalk.data.prepare.folder import relative_to
from timewalk.data.prepare.videos import Faults, Source, folder_frames, read_names
from timewalk.data.prepare.videos import header as image_header
from timewalk.data.prepare.videos import same_size
from timewalk.data.tracks import FIRST, KIND, LIST, Track, frame_name, to_row
from timewalk.metrics.tracking import clipped

log = logging.getLogger(__name__)

PUBLISHED = {"train": 9335, "val": 180, "test": 180}
"""sequences of each subset"""
LABELS = {"cover": 8, "absence": 1, "cut_by_image": 1}
"""files of one whole number a frame, and the largest number"""
GENERATED = "generated.txt"
"""file that marks a folder of generated videos"""
