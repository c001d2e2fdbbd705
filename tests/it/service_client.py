"""Writes the bytes of batches as their digest takes them: all first views, all second ones, labels, sample ids."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "examples"))
import numpy as np
from feed import Feed

url, first, count, token = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
one_message = sys.argv[5] == "whole"
for number, batch in enumerate(Feed(url, first, count, token=token), first):
    # Tensors, where this Python has torch, are arrays without a copy.
    views, labels, sample_ids = (np.asarray(part) for part in batch)
    assert views.dtype == np.uint8 and views.ndim == 5 and views.shape[-1] == 3, views.shape
    # A batch that came in one message is not copied: its array does not own its memory.
    assert views.flags.owndata != one_message or type(batch[0]) is not np.ndarray
    body = views.swapaxes(0, 1).tobytes() + labels.astype("<i8").tobytes() + sample_ids.astype("<u8").tobytes()
    sys.stdout.buffer.write(json.dumps({"batch": number, "bytes": len(body)}).encode() + b"\n" + body)
