"""Batches of `simclr-pipeline serve` in Python. Needs pyarrow and numpy; torch.from_numpy takes the arrays as they are.

    for position, views, labels, sample_ids in batches("grpc://127.0.0.1:8815", first_batch=0, count=100):
        first, second = torch.from_numpy(views.copy()).cuda(non_blocking=True).movedim(1, 0)   # each [N, H, W, 3] u8
"""

import json

import numpy as np
import pyarrow.flight as flight


def batches(url, first_batch, count, rank=0, world=1, token="", **tls):
    """Yields position, views [N, views, H, W, 3] u8, labels [N], sample ids [N] of each global batch, in order."""
    client = flight.connect(url, **tls)  # for grpc+tls://: tls_root_certs=..., and cert_chain=..., private_key=...
    options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])
    wanted = json.dumps(dict(first_batch=first_batch, count=count, rank=rank, world=world))
    info = client.get_flight_info(flight.FlightDescriptor.for_command(wanted.encode()), options)
    parts = []
    for chunk in client.do_get(info.endpoints[0].ticket, options):
        message = json.loads(chunk.app_metadata.to_pybytes())
        rows = chunk.data
        # A message's arrays are views into what was received; only batches in several messages are put together.
        parts.append((rows["views"].to_numpy_ndarray(), rows["label"].to_numpy(), rows["sample_id"].to_numpy()))
        if message["last"]:
            yield message, *(part[0] if len(part) == 1 else np.concatenate(part) for part in zip(*parts))
            parts = []
