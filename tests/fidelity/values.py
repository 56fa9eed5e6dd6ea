"""V: compressed and restored. Groups are channels of one token; N = P * H, E tokens in blocks."""

from dataclasses import replace

import torch
from torch import Tensor

from model import Bench, fp16
from patterns import assign, mine, mine_shared, take
from quantizers import (
    Fit,
    Grid,
    codes,
    damped,
    descent_target,
    feed_back,
    feedback_factor,
    fit_groups,
    hadamard,
    lloyd_levels,
    restore,
    search_grid,
    with_gain,
)
from row import Row


def _groups(x: Tensor, row: Row) -> Tensor:
    """[.., d] -> [.., d / G, G]"""
    return x.unflatten(-1, (-1, min(row.v_group_channels, x.shape[-1])))


def _gated(row: Row, fit: Fit, x: Tensor, pattern: Tensor) -> Tensor:
    """The pattern where subtracting it makes the squared error smaller, else 0."""

    def error(y: Tensor) -> Tensor:
        y = _groups(y, row)
        return ((y - restore(y, search_grid(y, fit), fit)) ** 2).sum((-2, -1))

    return pattern * (error(x - pattern) < error(x))[..., None]


def _with_feedback(row: Row, fit: Fit, residual: Tensor, moment: Tensor) -> Tensor:
    """residual [N, E, d] restored; the grids are those of the residual before feedback."""
    d = residual.shape[-1]
    moment = damped(moment, row.v_damping)
    order = torch.arange(d, device=residual.device).expand(len(moment), d)
    if row.v_group_channels >= d:  # else a group's channels would part
        order = moment.diagonal(dim1=-2, dim2=-1).argsort(-1, descending=True)
    moment = moment.gather(1, order[:, :, None].expand(-1, -1, d))
    moment = moment.gather(2, order[:, None].expand(-1, d, -1))[:, None]
    residual = residual.gather(2, order[:, None].expand_as(residual))[:, None]  # one block
    grid = search_grid(_groups(residual, row), fit)
    factor = feedback_factor(moment)
    rest, restored = residual.clone(), torch.empty_like(residual)
    size = min(row.v_group_channels, d)
    grids = [Grid(*(t[..., j // size, 0] for t in grid)) for j in range(d)]
    for j in range(d):
        restored[..., j] = restore(rest[..., j], grids[j], fit)
        feed_back(rest, j, restored[..., j], factor)
    for _ in range(row.v_sweeps):
        error = restored - residual
        for j in range(d):
            found = restore(descent_target(error, restored, moment, j), grids[j], fit)
            error[..., j] += found - restored[..., j]
            restored[..., j] = found
    if row.v_gain:
        code = codes(_groups(restored, row), grid, fit)
        grid = with_gain(_groups(residual, row), code, grid, row.v_gain)
        restored = (code * grid.scale + grid.zero_point).flatten(-2)
    restored = restored[:, 0]
    return restored.gather(2, order.argsort(-1)[:, None].expand_as(restored))


def compress_values(bench: Bench, layer: int, row: Row) -> Tensor:
    """[P, H, T, d]: exact sinks and window, restored blocks."""
    exact = bench.qkv[layer][2]
    num_passages, _, _, d = exact.shape
    end = row.num_cold(bench.num_prefix)
    if row.v_exact:
        return exact
    values = exact.flatten(0, 1)
    plain_moment = bench.model.output_moment(layer).expand(num_passages, -1, -1, -1)
    moment = plain_moment.flatten(0, 1)
    moment = moment / moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    turn = hadamard(d, values.device) if row.v_rotation == "hadamard" else None
    if turn is not None:
        values, moment = values @ turn.T, turn @ moment @ turn.T
    fit = Fit(row.bits_v, row.v_clip, row.v_clip_norm)
    cold = values[:, :end]
    table = None
    if row.patterns_v:
        if row.pattern_source == "prompt":
            table = mine(values[:, row.num_sinks :], row.patterns_v, row.v_kmeans, moment)
        else:
            chosen = bench.passages_of(row.pattern_text), row.num_sinks
            table = mine_shared(exact, *chosen, row.patterns_v, row.v_kmeans, plain_moment)
            table = table if turn is None else fp16(table @ turn.T)
    pattern = torch.zeros_like(cold) if table is None else take(table, assign(cold, table))
    if row.v_levels == "lloyd":
        fit = replace(fit, levels=lloyd_levels(_groups(cold - pattern, row)))
    if table is not None:
        pattern = _gated(row, fit, cold, pattern)
    if row.v_feedback:
        restored = _with_feedback(row, fit, cold - pattern, moment)
    else:
        fit = replace(fit, gain=row.v_gain)
        restored = fit_groups(_groups(cold - pattern, row), fit)[0].flatten(-2)
    restored = pattern + restored
    if turn is not None:
        restored = restored @ turn
    result = exact.clone()
    result[:, :, row.num_sinks : end] = fp16(
        restored[:, row.num_sinks :].unflatten(0, exact.shape[:2])
    )
    return result
