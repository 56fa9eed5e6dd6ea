"""Patterns: the centroids that vectors are subtracted from (PatternKV, arXiv:2510.05176).

x [N, T, d], patterns [N, M, d], ids [N, T]; N is passages times kv heads.
"""

import torch
from torch import Tensor
from torch.nn import functional

from model import fp16
from quantizers import damped

ITERATIONS = 30
MOMENT_DAMPING = 0.05
SHARED_STRIDE = 2  # tokens; a table for all is mined from every second one
JOINT_SWEEPS = 2
JOINT_CANDIDATES = 4


def _distances(x: Tensor, patterns: Tensor) -> Tensor:
    """[N, T, M]: half the squared distance, less a constant of the token."""
    return (patterns * patterns).sum(-1)[:, None] / 2 - x @ patterns.transpose(1, 2)


def assign(x: Tensor, patterns: Tensor) -> Tensor:
    return _distances(x, patterns).argmin(-1)


def take(patterns: Tensor, ids: Tensor) -> Tensor:
    return torch.gather(patterns, 1, ids[..., None].expand(-1, -1, patterns.shape[-1]))


def _means(x: Tensor, ids: Tensor, patterns: Tensor) -> Tensor:
    """The mean of each pattern's vectors; a pattern of none stays."""
    member = functional.one_hot(ids, patterns.shape[1]).float()
    count = member.sum(1)[..., None]
    return torch.where(count > 0, (member.transpose(1, 2) @ x) / count.clamp(min=1), patterns)


def _kmeans(x: Tensor, count: int) -> Tensor:
    """Lloyd's iterations from vectors at equal strides."""
    patterns = x[:, [m * x.shape[1] // count for m in range(count)]].clone()
    for _ in range(ITERATIONS):
        patterns = _means(x, assign(x, patterns), patterns)
    return patterns


def _root(moment: Tensor) -> Tensor:
    """L with L L' = the damped moment: |x L|^2 = x' moment x."""
    return torch.linalg.cholesky(damped(moment, MOMENT_DAMPING).double()).float()


def mine(x: Tensor, count: int, distance: str, moment: Tensor) -> Tensor:
    """`count` patterns of x by K-means. distance: l2; moment: x' moment x, moment [N, d, d];
    gain_shape: between directions, and a pattern is as long as its vectors are on average, while
    their mean is shorter (GSRQ, arXiv:2607.01065)."""
    if distance == "l2":
        return fp16(_kmeans(x, count))
    if distance == "moment":
        root = _root(moment)
        centres = fp16(_kmeans(x @ root, count))
        ids = assign(x @ root, centres)
        return fp16(_means(x, ids, torch.zeros_like(centres)))
    shapes = functional.normalize(x, dim=-1)
    centres = functional.normalize(_kmeans(shapes, count), dim=-1)
    gains = _means(x.norm(dim=-1, keepdim=True), assign(shapes, centres), centres[..., :1] * 0)
    return fp16(centres * gains)


def mine_shared(
    x: Tensor, chosen: list[int], num_sinks: int, count: int, distance: str, moment: Tensor
) -> Tensor:
    """One table of a kv head for all passages, mined from the chosen ones: [N, M, d].

    x [P, H, T, d], moment [P, H, d, d], neither rotated.
    """
    num_passages, num_kv_heads, _, d = x.shape
    sample = x[chosen][:, :, num_sinks::SHARED_STRIDE].transpose(0, 1).reshape(num_kv_heads, -1, d)
    patterns = mine(sample, count, distance, moment[chosen].mean(0))
    return patterns.repeat(num_passages, 1, 1)


def assign_by_moment(x: Tensor, patterns: Tensor, moment: Tensor) -> Tensor:
    root = _root(moment)
    return assign(x @ root, patterns @ root)


def assign_jointly(x: Tensor, patterns: Tensor, weight: Tensor, group_tokens: int) -> Tensor:
    """Ids that make the ranges of a K group small: a group of tokens costs the sum over channels of
    weight_j (max_j - min_j)^2 of its residuals, and one token after another moves to the cheapest
    of its nearest patterns. x [N, T, d] of whole groups, weight [N, d]."""
    candidates = min(JOINT_CANDIDATES, patterns.shape[1])
    near = _distances(x, patterns).topk(candidates, largest=False).indices  # nearest first
    size, d = x.shape[0], x.shape[-1]
    options = x[:, :, None] - take(patterns, near.flatten(1)).view(*near.shape, d)
    options = options.view(size, -1, group_tokens, candidates, d)  # [N, groups, G, candidates, d]
    residual = options[:, :, :, 0].clone()
    choice = torch.zeros(options.shape[:3], dtype=torch.long, device=x.device)
    for _ in range(JOINT_SWEEPS):
        for t in range(group_tokens):
            others = torch.cat([residual[:, :, :t], residual[:, :, t + 1 :]], 2)
            low, high = others.amin(2)[:, :, None], others.amax(2)[:, :, None]
            option = options[:, :, t]
            spread = torch.maximum(high, option) - torch.minimum(low, option)
            cost = (spread**2 * weight[:, None, None]).sum(-1)
            # A tie stays, else tokens inside the range would wander.
            best = cost.min(-1)
            kept = cost.gather(-1, choice[:, :, t, None])[..., 0]
            choice[:, :, t] = torch.where(best.values < kept, best.indices, choice[:, :, t])
            index = choice[:, :, t, None, None].expand(-1, -1, 1, d)
            residual[:, :, t] = option.gather(2, index)[:, :, 0]
    return near.gather(-1, choice.view(size, -1, 1))[..., 0]
