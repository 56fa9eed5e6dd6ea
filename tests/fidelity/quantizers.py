"""Groups of values that share a scale and a zero point, and error feedback between channels.

A group is the last dimension of x [.., G]; a grid's tensors are [.., 1]; a code stands for
zero_point + scale * code, both fp16 (KIVI, arXiv:2402.02750). With Lloyd levels a code is its
level.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model import fp16

SMALLEST_SCALE = 2.0**-14  # the smallest normal fp16: less is 0, and the group is constant
CLIP_STEP = 0.05


class Grid(NamedTuple):
    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True)
class Fit:
    """How a group's grid is found."""

    bits: int
    lowest_ratio: float = 1.0  # clip search: range times 1, 0.95, .. about the mid-range
    norm: float = 2.0
    gain: float = 0.0  # slope of restored on exact values that is set after the search; 0: not
    levels: Tensor | None = None  # [4], ascending; None: 0 .. 2^bits - 1

    def ratios(self) -> list[float]:
        count = round((1 - self.lowest_ratio) / CLIP_STEP) + 1
        return [round(1 - CLIP_STEP * i, 4) for i in range(count)]


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x.mean(-1, keepdim=True)
    return (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)


def codes(x: Tensor, grid: Grid, fit: Fit) -> Tensor:
    positive = grid.scale > 0
    y = (x - grid.zero_point) / torch.where(positive, grid.scale, 1.0)
    if fit.levels is None:
        y = y.clamp(0, 2**fit.bits - 1).round()
    else:
        y = fit.levels[torch.bucketize(y, (fit.levels[1:] + fit.levels[:-1]) / 2)]
    return torch.where(positive, y, 0.0)


def restore(x: Tensor, grid: Grid, fit: Fit) -> Tensor:
    """x through its codes."""
    return codes(x, grid, fit) * grid.scale + grid.zero_point


def _grids(x: Tensor, fit: Fit, weight: Tensor | None) -> list[Grid]:
    """The candidates, one for each ratio. Lloyd levels shrink the standard deviation instead."""
    if fit.levels is not None:
        mean = _mean(x, weight)
        deviation = _mean((x - mean) ** 2, weight).sqrt()
        return [_grid(deviation * ratio, mean) for ratio in fit.ratios()]
    low = x if weight is None else torch.where(weight > 0, x, torch.inf)
    high = x if weight is None else torch.where(weight > 0, x, -torch.inf)
    low, high = low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    ends = [(middle - half * ratio, middle + half * ratio) for ratio in fit.ratios()]
    return [_grid((high - low) / (2**fit.bits - 1), low) for low, high in ends]


def _grid(scale: Tensor, zero_point: Tensor) -> Grid:
    scale = fp16(scale)
    return Grid(torch.where(scale < SMALLEST_SCALE, 0.0, scale), fp16(zero_point))


def search_grid(x: Tensor, fit: Fit, weight: Tensor | None = None) -> Grid:
    """The grid of the smallest sum of weight * |error|^norm over the ratios (OSCAR,
    arXiv:2605.17757, clips too). Values of weight 0 count neither there nor in the range."""
    best, least = None, None
    for grid in _grids(x, fit, weight):
        error = (x - restore(x, grid, fit)).abs() ** fit.norm
        error = (error if weight is None else error * weight).sum(-1, keepdim=True)
        if best is None:
            best, least = grid, error
        else:
            better = error < least
            least = torch.where(better, error, least)
            best = Grid(*(torch.where(better, a, b) for a, b in zip(grid, best)))
    return best


def with_gain(
    x: Tensor, code: Tensor, grid: Grid, gain: float, weight: Tensor | None = None
) -> Grid:
    """The grid that, with the same codes, restores x with this slope on x and x's mean.

    A quantizer of least squared error shrinks: its slope is below 1 (TurboQuant, arXiv:2504.19874,
    on biased inner products). Kept as it is where the scale would halve or double.
    """
    mean_code, mean = _mean(code, weight), _mean(x, weight)
    covariance = _mean((code - mean_code) * (x - mean), weight)
    scale = gain * _mean((x - mean) ** 2, weight) / covariance.clamp(min=1e-20)
    valid = (covariance > 1e-12) & (scale > grid.scale / 2)
    valid &= scale < 2 * grid.scale.clamp(min=1e-9)
    scale = torch.where(valid, fp16(scale), grid.scale)
    return Grid(scale, torch.where(valid, fp16(mean - scale * mean_code), grid.zero_point))


def fit_groups(x: Tensor, fit: Fit, weight: Tensor | None = None) -> tuple[Tensor, Grid]:
    """x restored, and the grids that did it."""
    grid = search_grid(x, fit, weight)
    code = codes(x, grid, fit)
    if fit.gain:
        grid = with_gain(x, code, grid, fit.gain, weight)
    return code * grid.scale + grid.zero_point, grid


def fine_grid(grid: Grid, fit: Fit, fine_bits: int, extension: float) -> Grid:
    """A uniform grid over the same range and `extension` steps more at either end. Not rounded: a
    reader derives it from the stored scale and zero point."""
    scale, low, steps = grid.scale, grid.zero_point, 2**fit.bits - 1
    if fit.levels is not None:
        low = low + scale * fit.levels[0]
        scale = scale * (fit.levels[-1] - fit.levels[0]) / steps
    return Grid(scale * ((steps + 2 * extension) / (2**fine_bits - 1)), low - extension * scale)


def lloyd_levels(x: Tensor, iterations: int = 40) -> Tensor:
    """The levels {-a, -b, b, a} of least squared error for groups of x at mean 0, deviation 1."""
    y = x - x.mean(-1, keepdim=True)
    y = (y / y.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-9)).abs()
    near, far = y.new_tensor(0.45), y.new_tensor(1.5)  # about those of a Gaussian
    for _ in range(iterations):
        outer = y > (near + far) / 2
        near, far = y[~outer].mean(), y[outer].mean()
    return torch.stack([-far, -near, near, far])


def damped(moment: Tensor, share: float) -> Tensor:
    """[.., d, d] plus `share` of its mean diagonal on the diagonal."""
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return moment + share * mean * torch.eye(moment.shape[-1], device=moment.device)


def feedback_factor(moment: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of a damped moment (GPTQ, arXiv:2210.17323)."""
    inverse = torch.linalg.inv(moment.double())
    return torch.linalg.cholesky(inverse, upper=True).float()


def feed_back(x: Tensor, j: int, restored: Tensor, factor: Tensor) -> None:
    """Adds channel j's error, as `factor` says, to the channels of x [N, blocks, tokens, d] after
    it. restored [N, blocks, tokens], factor [N, blocks or 1, d, d]."""
    error = (x[..., j] - restored) / factor[:, :, j, j, None]
    if j + 1 < x.shape[-1]:
        x[..., j + 1 :] -= error[..., None] * factor[:, :, None, j, j + 1 :]


def descent_target(error: Tensor, restored: Tensor, moment: Tensor, j: int) -> Tensor:
    """The value of channel j that minimises e' moment e, the other channels being as they are."""
    slope = (error * moment[:, :, None, j, :]).sum(-1) / moment[:, :, j, j, None]
    return restored[..., j] - slope


def hadamard(size: int, device: str) -> Tensor:
    """The orthogonal Hadamard matrix (as QuaRot, arXiv:2404.00456, rotates)."""
    if size & (size - 1):
        raise ValueError(f"head_dim {size} is not a power of two")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (matrix / size**0.5).to(device)
