"""Batches of `simclr-pipeline serve` as a DataLoader gives them: torch tensors where torch is, numpy arrays elsewhere.

    for views, labels, sample_ids in Feed("grpc://127.0.0.1:8815", first_batch=0, count=100):
        first, second = views.cuda().movedim(1, 0)   # views: [N, 2, H, W, 3] u8; labels and sample_ids: [N]

Needs pyarrow and numpy. Run it with an address to see a batch, and how fast they come.
"""

import json
import warnings

import numpy as np
import pyarrow.flight as flight

try:
    from torch import from_numpy as tensor
except ImportError:
    tensor = np.asarray


class Feed:
    """Iterates over batches, `count` of them or without an end. Tensors are views into what was received."""

    def __init__(self, url, first_batch=0, count=None, rank=0, world=1, token="", **tls):
        self.client = flight.connect(url, **tls)  # for grpc+tls://: tls_root_certs=..., and cert_chain=..., private_key=...
        self.options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])
        wanted = json.dumps(dict(first_batch=first_batch, count=count, rank=rank, world=world))
        self.info = self.client.get_flight_info(flight.FlightDescriptor.for_command(wanted.encode()), self.options)
        self.first_batch = first_batch

    def __iter__(self):
        # Received memory is read-only, which torch has no word for: change a clone.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        number, parts = self.first_batch, []
        for chunk in self.client.do_get(self.info.endpoints[0].ticket, self.options):
            message, rows = json.loads(chunk.app_metadata.to_pybytes()), chunk.data
            parts.append((rows["views"].to_numpy_ndarray(), rows["label"].to_numpy(), rows["sample_id"].to_numpy()))
            if message["last"]:
                assert message["batch"] == number, f'batch {message["batch"]} came for {number}'
                # Only a batch in several messages is put together, which copies it.
                yield tuple(tensor(part[0] if len(part) == 1 else np.concatenate(part)) for part in zip(*parts))
                number, parts = number + 1, []


if __name__ == "__main__":
    import sys
    import time

    began, images = time.monotonic(), 0
    for views, labels, sample_ids in Feed(sys.argv[1], count=100):
        images += len(views)
    print(f"{type(views).__module__}.{type(views).__name__} {tuple(views.shape)} {views.dtype}, labels {labels[:4]}: "
          f"{images / (time.monotonic() - began):.0f} images/s")
