"""PyTorch's causal attention on the shapes of `pkv-bench kernels --section prefill`.

Usage: prefill_peers.py [--repetitions N] [--json FILE]

A square case is is_causal; a chunk of queries at the end of more keys is causal_lower_right, which
flash knows, and which PyTorch materialises as a mask for cuDNN: its times of those cases are not
its best. Grouped heads are left to the library, or repeated beforehand where it refuses them (the
repeated keys take more traffic, the same arithmetic).
"""

import argparse
import json

import torch
from peers import BACKENDS, median_us
from torch.nn.attention import sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

# (queries, keys, query heads, kv heads, head_dim), as prefill_section.cc
SHAPES = [
    (32768, 32768, 32, 8, 128),
    (8192, 32768, 32, 8, 128),
    (4096, 32768, 32, 8, 128),
    (8192, 8192, 32, 8, 128),
    (2048, 2048, 32, 8, 128),
    (8192, 8192, 16, 16, 64),
]


def operations(queries, keys, heads, _, head_dim):
    return 4 * heads * head_dim * queries * ((keys - queries) + (queries + 1) / 2)


def attend(q, k, v):
    gqa = q.shape[1] != k.shape[1]
    if q.shape[2] == k.shape[2]:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    mask = causal_lower_right(q.shape[2], k.shape[2])
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)


def time_shape(shape, backend, repeated, repetitions):
    queries, keys, heads, kv_heads, head_dim = shape

    def draw(tokens, count):
        # [tokens][head][head_dim], as queries and keys come out of a product of matrices
        size = (1, tokens, count, head_dim)
        return torch.randn(size, device="cuda", dtype=torch.float16).transpose(1, 2)

    q, k, v = draw(queries, heads), draw(keys, kv_heads), draw(keys, kv_heads)
    if repeated:
        k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    with sdpa_kernel(backend):
        us = median_us(lambda: attend(q, k, v), 1, repetitions)
    return {"us": us, "tflops": operations(*shape) / us["median"] / 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--json")
    parsed = parser.parse_args()
    report = []
    for shape in SHAPES:
        for name, backend in BACKENDS.items():
            row = {"shape": shape, "backend": name}
            for repeated in (False, True):
                try:
                    row.update(time_shape(shape, backend, repeated, parsed.repetitions))
                    row["repeated"] = repeated
                    break
                except (RuntimeError, TypeError, ValueError, NotImplementedError) as refusal:
                    row["refused"] = str(refusal).strip().split("\n", maxsplit=1)[0]
            report.append(row)
            timed = f"refused: {row.get('refused', '')[:60]}"
            if "us" in row:
                timed = f"{row['us']['median']:10.1f} us {row['tflops']:7.1f} TFLOP/s"
            note = "repeated" if row.get("repeated") else ""
            print(f"{name:<6} {shape} {timed} {note}", flush=True)
    if parsed.json:
        with open(parsed.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
