"""fp16 decode attention of PyTorch, timed as pkv-bench times ours.

One query token, no mask. The query heads of a kv head are either left to the library (enable_gqa)
or given as query tokens of one head ("folded"): the same sums, and the quicker way for kernels
whose query tile is empty otherwise. Buffers rotate, launches are captured into a CUDA graph, the
median of the repetitions counts.
"""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

REUSE_BYTES = 300_000_000  # as attention_case.cc
LEAST_GRAPH_US = 3000  # as gpu_timing.cc
MOST_LAUNCHES = 2000
WARM_UPS = 3
WRONG_RELATIVE_ERROR = 1e-2  # as report.h

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
WAYS = ("enable_gqa", "folded")


@dataclass
class Shape:
    """A case of `pkv-bench kernels --plan`."""

    batch: int
    context_tokens: int
    mixed: bool
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def bytes(self) -> int:
        return 4 * self.batch * self.num_kv_heads * self.context_tokens * self.head_dim

    def copies(self, l2_bytes: int) -> int:
        return 1 - -max(REUSE_BYTES, 2 * l2_bytes + 1) // self.bytes


def _inputs(shape: Shape, count: int, device: str):
    """[(q, k, v)]; q is [batch, num_qo_heads, 1, head_dim]."""
    generator = torch.Generator(device).manual_seed(1)

    def draw(heads, tokens):
        size = (shape.batch, heads, tokens, shape.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=torch.float16)

    return [
        (
            draw(shape.num_qo_heads, 1),
            draw(shape.num_kv_heads, shape.context_tokens),
            draw(shape.num_kv_heads, shape.context_tokens),
        )
        for _ in range(count)
    ]


def attend(way: str, q, k, v):
    """Attention of one query token; [batch, num_qo_heads, 1, head_dim]."""
    if way == "enable_gqa":
        return scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    folded = q.view(q.shape[0], k.shape[1], -1, q.shape[3])
    return scaled_dot_product_attention(folded, k, v).view(q.shape)


def relative_error(out, q, k, v) -> float:
    """Against fp64, for the query heads of the last request's last kv head."""
    group = q.shape[1] // k.shape[1]
    query, keys, values = q[-1, -group:, 0].double(), k[-1, -1].double(), v[-1, -1].double()
    weights = torch.softmax(query @ keys.T / q.shape[3] ** 0.5, dim=-1)
    expected = weights @ values
    return ((out[-1, -group:, 0].double() - expected).norm() / expected.norm()).item()


def median_us(run, launches: int, repetitions: int) -> dict:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    samples = []
    for i in range(WARM_UPS + repetitions):
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= WARM_UPS:
            samples.append(begin.elapsed_time(end) * 1000 / launches)
    samples.sort()
    middle = (samples[(len(samples) - 1) // 2] + samples[len(samples) // 2]) / 2
    return {"median": middle, "min": samples[0], "max": samples[-1], "count": len(samples)}


def _time_way(way: str, inputs, repetitions: int) -> dict:
    """One backend's time of one launch, in microseconds."""
    error = relative_error(attend(way, *inputs[0]), *inputs[0])
    if not error <= WRONG_RELATIVE_ERROR:
        return {"refused": f"relative error {error:.3g}: the result is wrong"}
    for launch in inputs:
        attend(way, *launch)

    def rotation():
        for launch in inputs:
            attend(way, *launch)

    once = median_us(rotation, 1, 1)["median"]
    rotations = max(1, -int(-LEAST_GRAPH_US // max(once, 1)))
    rotations = min(rotations, 1 + MOST_LAUNCHES // len(inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rotations):
            rotation()
    us = median_us(graph.replay, rotations * len(inputs), repetitions)
    return {"us": us, "relative_error": error, "launches": rotations * len(inputs)}


def time_case(shape: Shape, repetitions: int, wanted=None) -> dict:
    """{"cudnn folded": {"us": {...}, ...} or {"refused": why}}; `wanted`: only these."""
    properties = torch.cuda.get_device_properties(0)
    inputs = _inputs(shape, shape.copies(properties.L2_cache_size), "cuda")
    times = {}
    for name, backend in BACKENDS.items():
        for way in WAYS:
            label = f"{name} {way}"
            if wanted is not None and label not in wanted:
                continue
            try:
                with sdpa_kernel(backend):
                    times[label] = _time_way(way, inputs, repetitions)
            except RuntimeError as refusal:
                times[label] = {"refused": str(refusal).strip().split("\n")[0]}
    del inputs
    torch.cuda.empty_cache()
    return times


def describe() -> dict:
    properties = torch.cuda.get_device_properties(0)
    return {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "device": properties.name,
    }
