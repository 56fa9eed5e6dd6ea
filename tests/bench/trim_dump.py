"""Keeps of a dump (pkvctl eval --dump) what pkv-bench reads, so that it travels: the K and V of the
first layers, and the queries of the last scored tokens.

Usage: trim_dump.py FROM TO [--layers N] [--queries N]
"""

import argparse
import json
import struct
from pathlib import Path


def read(path):
    """({name: (dtype, shape, bytes)}, metadata) of a safetensors file."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return tensors, metadata


def write(path, tensors, metadata):
    header, payload = {"__metadata__": metadata}, b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(payload), len(payload) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        payload += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + payload)


def trim(tensors, num_layers, num_queries):
    kept = {}
    for layer in range(num_layers):
        prefix = f"layers.{layer}."
        if prefix + "k" not in tensors:
            break
        for name in ("k", "v"):
            kept[prefix + name] = tensors[prefix + name]
        dtype, shape, data = tensors[prefix + "q"]
        tokens = min(num_queries, shape[0])
        row_bytes = len(data) // shape[0]
        last = data[(shape[0] - tokens) * row_bytes :]
        kept[prefix + "q"] = (dtype, [tokens, *shape[1:]], last)
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--queries", type=int, default=16)
    parsed = parser.parse_args()
    tensors, metadata = read(parsed.source)
    kept = trim(tensors, parsed.layers, parsed.queries)
    write(parsed.target, kept, metadata)
    size = Path(parsed.target).stat().st_size
    print(f"{parsed.target}: {size / 1e6:.1f} MB, {len(kept)} tensors")


if __name__ == "__main__":
    main()
