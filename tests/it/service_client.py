"""Writes the bytes of batches as their digest takes them: all first views, all second ones, labels, sample ids."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "examples"))
import numpy as np
from feed import batches

url, first, count, token = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for position, views, labels, sample_ids in batches(url, first, count, token=token):
    assert views.dtype == np.uint8 and views.ndim == 5 and views.shape[-1] == 3, views.shape
    # Without a copy: the array does not own its memory when the batch came in one message.
    assert position["offset"] > 0 or not views.flags.owndata
    body = views.swapaxes(0, 1).tobytes() + labels.astype("<i8").tobytes() + sample_ids.astype("<u8").tobytes()
    header = json.dumps({"batch": position["batch"], "bytes": len(body)}).encode() + b"\n"
    sys.stdout.buffer.write(header + body)
