"""What later queries see: query moments, importance of tokens, and what an error does to them.

(Not `statistics.py`: a script's folder comes before the standard library.)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from model import Bench
from row import BLOCK_TOKENS, Row

QUERY_STRIDE = 8  # attention is sampled at every eighth query
DIAGNOSED_QUERIES = 256


class AttentionStatistics(NamedTuple):
    """Sums over sampled queries; only over tokens that stand in blocks when the query comes."""

    importance: dict[str, Tensor]  # mass, squared, value: [P, H, T]
    moment: dict[str, Tensor]  # q q', weighted by the query's sum of the same: [P, H, d, d]
    block_moment: Tensor  # weighted by `value` of the block's tokens: [P, H, blocks, d, d]


def _measure(bench: Bench, layer: int, num_sinks: int, recent_tokens: int) -> AttentionStatistics:
    q, k, v = bench.qkv[layer]
    (num_passages, num_heads, num_tokens, d), r = k.shape, bench.model.queries_per_kv
    sampled = torch.arange(QUERY_STRIDE - 1, num_tokens, QUERY_STRIDE, device=k.device)
    token = torch.arange(num_tokens, device=k.device)
    causal = token <= sampled[:, None]
    cold = (token <= sampled[:, None] - recent_tokens) & (token >= num_sinks)
    num_blocks = (num_tokens - recent_tokens) // BLOCK_TOKENS
    end = num_blocks * BLOCK_TOKENS
    importance: dict[str, list[Tensor]] = {"mass": [], "squared": [], "value": []}
    moment: dict[str, list[Tensor]] = {name: [] for name in importance}
    block_moment = []
    for p in range(num_passages):
        queries = q[p][:, sampled].view(num_heads, r, len(sampled), d)
        keys, values = k[p][:, None], v[p][:, None]
        scores = (queries @ keys.transpose(-1, -2)) / math.sqrt(d)
        attention = scores.masked_fill(~causal, float("-inf")).softmax(-1)  # [H, r, sampled, T]
        out = attention @ values
        # |v - o|^2: how far attending to the token moves the output.
        distance = (values * values).sum(-1)[:, :, None] + (out * out).sum(-1)[..., None]
        distance = (distance - 2 * (out @ values.transpose(-1, -2))).clamp(min=0)
        mass = attention * cold
        weights = {"mass": mass, "squared": mass * mass, "value": mass * mass * distance}
        for name, weight in weights.items():
            importance[name].append(weight.sum((1, 2)))
            moment[name].append(_weighted(queries, weight.sum(-1)))
        by_block = weights["value"][..., :end].unflatten(-1, (num_blocks, BLOCK_TOKENS)).sum(-1)
        block_moment.append(torch.einsum("hrsb,hrsd,hrse->hbde", by_block, queries, queries))
    return AttentionStatistics(
        {name: torch.stack(part) for name, part in importance.items()},
        {name: torch.stack(part) for name, part in moment.items()},
        torch.stack(block_moment),
    )


def _weighted(queries: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("hrs,hrsd,hrse->hde", weight, queries, queries)


def attention_statistics(bench: Bench, layer: int, row: Row) -> AttentionStatistics:
    key = ("attention", layer, row.num_sinks, row.recent_tokens)
    return bench.once(key, lambda: _measure(bench, layer, row.num_sinks, row.recent_tokens))


def key_moment(bench: Bench, layer: int, row: Row) -> Tensor:
    """The moment of the queries that read a kv head: [P, H, blocks or 1, d, d], mean diagonal 1."""
    if row.k_moment in ("prompt", "text"):
        q, r = bench.qkv[layer][0], bench.model.queries_per_kv
        q = q.unflatten(1, (-1, r))[:, :, :, :: row.k_moment_every]  # [P, H, r, T, d]
        q = q[:, :, :, -row.k_moment_last :].flatten(2, 3)  # -0: all
        moment = (q.transpose(-1, -2) @ q)[:, :, None]
        if row.k_moment == "text":
            calibration = moment[bench.passages_of(row.k_moment_text)] / q.shape[2]
            moment = calibration.mean(0, keepdim=True).expand(len(q), -1, -1, -1, -1)
    elif row.k_moment == "block":
        moment = attention_statistics(bench, layer, row).block_moment
    else:
        moment = attention_statistics(bench, layer, row).moment[row.k_moment][:, :, None]
    diagonal = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    moment = moment / diagonal[..., None, None].clamp(min=1e-20)
    if row.k_moment == "block":
        share = row.k_moment_mix
        moment = (1 - share) * moment + share * moment.mean(2, keepdim=True)
    return moment


def block_importance(bench: Bench, layer: int, row: Row) -> Tensor:
    """[P * H, blocks, 128]: row.importance of the tokens in blocks."""
    found = attention_statistics(bench, layer, row).importance[row.importance].flatten(0, 1)
    return found[:, : row.num_cold(bench.num_prefix)].unflatten(1, (-1, BLOCK_TOKENS))


def search_weight(bench: Bench, layer: int, row: Row) -> Tensor | None:
    """[P * H, blocks, 128]: what a token's error counts in the K clip search; None: all alike."""
    if not row.k_clip_importance:
        return None
    importance = block_importance(bench, layer, row)
    position = torch.arange(row.num_cold(bench.num_prefix), device=importance.device)
    later = (bench.num_prefix - position).clamp(min=64).view(-1, BLOCK_TOKENS)
    importance = importance / later  # of one later query
    importance = importance / importance.mean(2, keepdim=True).clamp(min=1e-30)
    weight = importance**row.k_clip_importance
    return weight / weight.mean(2, keepdim=True).clamp(min=1e-20) + 0.1


class Diagnosis(NamedTuple):
    """Of one layer; "seen" is weighted by the exact attention of the last queries on blocks."""

    mass: float  # attention on compressed tokens
    seen_mean: float  # of the logit error
    log_mass: float  # change of the log of that attention before normalisation
    seen_variance: float  # of the logit error
    variance: float  # the same, tokens alike
    seen_slope: float  # of the logit error on the exact logit: below 0 is shrunk
    slope: float  # the same, tokens alike
    v_slope: float  # of the error of the attended V on the attended V
    v_error: float  # its squared error over its squared norm


def diagnose(
    bench: Bench, layer: int, row: Row, k_restored: Tensor, v_restored: Tensor
) -> Diagnosis:
    q, k, v = bench.qkv[layer]
    num_tokens, d = k.shape[2:]
    cold = slice(row.num_sinks, row.num_cold(num_tokens))
    # Queries that stand behind every block: each sees all compressed tokens.
    count = max(1, min(DIAGNOSED_QUERIES, num_tokens - cold.stop))
    position = torch.arange(num_tokens - count, num_tokens, device=k.device)
    position = position.repeat(bench.model.queries_per_kv)
    future = torch.arange(num_tokens, device=k.device) > position[:, None]
    results = []
    for p in range(len(q)):
        queries = q[p][:, -count:].reshape(k.shape[1], -1, d)  # [H, r * count, d]
        logits = queries @ k[p].transpose(-1, -2) / math.sqrt(d)
        error = queries @ (k_restored[p] - k[p])[:, cold].transpose(-1, -2) / math.sqrt(d)
        seen = logits.masked_fill(future, float("-inf")).softmax(-1)[..., cold]
        logits, mass = logits[..., cold], seen.sum(-1)

        def mean(x: Tensor) -> Tensor:
            return (seen * x).sum(-1) / mass

        def slope(weight: Tensor | float, mean_error: Tensor, mean_logit: Tensor) -> Tensor:
            x = logits - mean_logit
            return (weight * (error - mean_error) * x).sum() / (weight * x * x).sum()

        seen_mean, log_mass = mean(error), mean(error.exp()).log()
        seen_variance = mean((error - seen_mean[..., None]) ** 2)
        means = error.mean(-1, keepdim=True), logits.mean(-1, keepdim=True)
        out, v_error = seen @ v[p][:, cold], seen @ (v_restored[p] - v[p])[:, cold]
        results.append(
            [
                mass.mean(),
                *((mass * x).sum() / mass.sum() for x in (seen_mean, log_mass, seen_variance)),
                error.var(),
                slope(seen, seen_mean[..., None], mean(logits)[..., None]),
                slope(1.0, *means),
                (v_error * out).sum() / (out * out).sum(),
                (v_error * v_error).sum() / (out * out).sum(),
            ]
        )
    # In the order of Diagnosis: the three means of mass are seen_mean, log_mass, seen_variance.
    return Diagnosis(*torch.tensor(results).mean(0).tolist())
