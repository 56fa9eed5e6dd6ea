"""K: compressed and restored.

Frame (rotary embedding undone, rotation) -> pattern subtracted -> groups of tokens of one channel
quantized, channel after channel, with error feedback -> back. N = P * H.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attention_statistics import block_importance, key_moment, search_weight
from model import Bench, fp16
from patterns import assign, assign_by_moment, assign_jointly, mine, mine_shared, take
from quantizers import (
    Fit,
    Grid,
    damped,
    descent_target,
    feed_back,
    feedback_factor,
    fine_grid,
    fit_groups,
    hadamard,
    lloyd_levels,
    restore,
)
from row import BLOCK_TOKENS, FINE_BITS, Row

WHITENING_DAMPING = 0.05
ROPE_SAMPLES = 8  # positions of a block at which the moment is turned


def _turn_back(bench: Bench, moment: Tensor, num_blocks: int) -> Tensor:
    """The moment that K before rotary embedding is seen with: the mean of R_s' moment R_s over
    positions s of a block. [P, H, blocks or 1, d, d] -> [P, H, blocks, d, d]."""
    total = torch.zeros((), device=moment.device)
    step = BLOCK_TOKENS // ROPE_SAMPLES
    for offset in range(step // 2, BLOCK_TOKENS, step):
        position = torch.arange(num_blocks, device=moment.device) * BLOCK_TOKENS + offset
        position = position[:, None].expand(-1, moment.shape[-1])
        half_turned = bench.model.rope(moment, position, inverse=True).transpose(-1, -2)
        total = total + bench.model.rope(half_turned, position, inverse=True)
    return total / ROPE_SAMPLES


def _rotation(kind: str, keys: Tensor, moment: Tensor) -> Tensor | None:
    """[N, d, d], applied from the right transposed; keys [N, T, d], moment [N, d, d]."""
    size, _, d = keys.shape
    if kind == "none":
        return None
    turn = hadamard(d, keys.device)
    if kind == "hadamard":
        return turn.expand(size, d, d)
    if kind == "query":  # eigenvectors of what queries see (OSCAR, arXiv:2605.17757)
        basis = torch.linalg.eigh(moment.double())[1]
        return (turn.double() @ basis.transpose(1, 2)).float()
    centred = keys - keys.mean(1, keepdim=True)
    covariance = damped(centred.transpose(1, 2) @ centred / keys.shape[1], WHITENING_DAMPING)
    value, basis = torch.linalg.eigh(covariance.double())
    return turn @ (basis @ torch.diag_embed(value**-0.5) @ basis.transpose(1, 2)).float()


@dataclass
class Encoder:
    """The residual of whole blocks, its channels in the order in which they are quantized."""

    row: Row
    fit: Fit
    residual: Tensor  # [N, blocks, 128, d]
    moment: Tensor  # [N, blocks or 1, d, d], damped
    factor: Tensor | None  # of feedback, as the moment

    def _groups(self, x: Tensor | None) -> Tensor | None:
        """[N, blocks, 128] -> [N, groups, G]"""
        return None if x is None else x.reshape(len(x), -1, self.row.k_group_tokens)

    def _fit(self, channel: Tensor, weight: Tensor | None) -> tuple[Tensor, Grid]:
        restored, grid = fit_groups(self._groups(channel), self.fit, self._groups(weight))
        return restored.view(channel.shape), grid

    def _feed(self, rest: Tensor, j: int, restored: Tensor) -> None:
        if self.factor is not None:
            feed_back(rest, j, restored, self.factor)

    def encode(self, weight: Tensor | None) -> tuple[Tensor, list[Grid]]:
        """Restored residual, and the grids of each channel. weight [N, blocks, 128]."""
        rest, restored, grids = self.residual.clone(), torch.empty_like(self.residual), []
        for j in range(rest.shape[-1]):
            restored[..., j], grid = self._fit(rest[..., j], weight)
            grids.append(grid)
            self._feed(rest, j, restored[..., j])
        for _ in range(self.row.k_sweeps):
            self._sweep(restored, grids, weight)
        return restored, grids

    def _sweep(self, restored: Tensor, grids: list[Grid], weight: Tensor | None) -> None:
        """Each channel again, the others being as they are; a group keeps what is better."""
        error = restored - self.residual
        for j, old_grid in enumerate(grids):
            target = descent_target(error, restored, self.moment, j)
            found, grid = self._fit(target, weight)
            loss = [(x - target) ** 2 for x in (found, restored[..., j])]
            loss = [self._groups(x if weight is None else x * weight) for x in loss]
            better = loss[0].sum(-1, keepdim=True) < loss[1].sum(-1, keepdim=True)
            grids[j] = Grid(*(torch.where(better, a, b) for a, b in zip(grid, old_grid)))
            better = better.expand_as(loss[0]).reshape(target.shape)
            found = torch.where(better, found, restored[..., j])
            error[..., j] += found - restored[..., j]
            restored[..., j] = found

    def encode_fine(self, grids: list[Grid]) -> Tensor:
        """Every token with fine codes on the fine grids of these grids."""
        rest, restored = self.residual.clone(), torch.empty_like(self.residual)
        fine = replace(self.fit, bits=FINE_BITS, levels=None)
        for j, coarse in enumerate(grids):
            grid = fine_grid(coarse, self.fit, FINE_BITS, self.row.k_fine_extension)
            channel = self._groups(rest[..., j])
            restored[..., j] = restore(channel, grid, fine).view(rest.shape[:-1])
            self._feed(rest, j, restored[..., j])
        return restored

    def seen_error(self, restored: Tensor) -> Tensor:
        """e' moment e of each token: [N, blocks, 128]."""
        error = restored - self.residual
        return ((error @ self.moment) * error).sum(-1)


def _choose_fine(row: Row, importance: Tensor, gain: Tensor | None) -> Tensor:
    """1 for a block's fine tokens, else 0: [N, blocks, 128]. gain: of the error, if fine."""
    score = importance
    if gain is not None:
        score = gain * importance if row.k_fine_select == "error_importance" else gain
    score = score.clone()
    score[:, 0, : row.num_sinks] = -torch.inf
    top = score.topk(row.k_fine_tokens, dim=2).indices
    return torch.zeros_like(score).scatter_(2, top, 1.0)


def _encode(
    row: Row, encoder: Encoder, weight: Tensor | None, importance: Tensor | None
) -> Tensor:
    """Restored residual [N, blocks, 128, d]; importance [N, blocks, 128] for fine tokens."""
    if not row.k_fine_tokens:
        return encoder.encode(weight)[0]
    by_error = row.k_fine_select != "importance"
    chosen, plain = None, None
    if by_error or not row.k_fine_exclude:
        plain, grids = encoder.encode(weight)
        fine = encoder.encode_fine(grids)
        gain = encoder.seen_error(plain) - encoder.seen_error(fine) if by_error else None
        chosen = _choose_fine(row, importance, gain)
    if row.k_fine_exclude:
        chosen = _choose_fine(row, importance, None) if chosen is None else chosen
        plain, grids = encoder.encode((1 - chosen) * (1.0 if weight is None else weight))
        fine = encoder.encode_fine(grids)
    return torch.where(chosen[..., None] > 0, fine, plain)


def _ordered(row: Row, residual: Tensor, moment: Tensor) -> tuple[Encoder, Tensor]:
    """The encoder of the residual, and the order of its channels, [N, d]."""
    size, num_blocks, _, d = residual.shape
    moment = damped(moment, row.k_damping)
    order = torch.arange(d, device=residual.device).expand(size, d)
    if row.k_feedback and row.k_order != "natural":
        diagonal = moment.diagonal(dim1=-2, dim2=-1)
        if row.k_order == "variance":
            diagonal = diagonal * residual.pow(2).mean((1, 2))[:, None]
        order = diagonal.mean(1).argsort(-1, descending=row.k_order != "ascending")
    # Both of the moment's dimensions, and the residual's last.
    index = order[:, None, None]
    moment = moment.gather(3, index.expand(-1, moment.shape[1], d, -1))
    moment = moment.gather(2, index.transpose(2, 3).expand(-1, moment.shape[1], -1, d))
    residual = residual.gather(3, index.expand(-1, num_blocks, BLOCK_TOKENS, -1))
    fit = Fit(row.bits_k, row.k_clip, row.k_clip_norm, row.k_gain)
    if row.k_levels == "lloyd":
        groups = residual.transpose(2, 3).reshape(-1, row.k_group_tokens)
        fit = replace(fit, levels=lloyd_levels(groups))
    factor = feedback_factor(moment) if row.k_feedback else None
    return Encoder(row, fit, residual, moment, factor), order


def _compress_blocks(
    bench: Bench, layer: int, row: Row, residual: Tensor, moment: Tensor
) -> Tensor:
    """residual [N, E, d] restored; moment [N, blocks or 1, d, d]."""
    blocks = residual.unflatten(1, (-1, BLOCK_TOKENS))
    token_scale = None
    if row.k_token_scale:  # over channels of equal size (OScaR, arXiv:2605.19660)
        channel = blocks.pow(2).mean(2, keepdim=True).sqrt().clamp(min=1e-6)
        norm = (blocks / channel).pow(2).mean(3, keepdim=True).sqrt().clamp(min=1e-4)
        token_scale = norm**row.k_token_scale
        token_scale = fp16(token_scale / token_scale.mean(2, keepdim=True))
        blocks = blocks / token_scale
    encoder, order = _ordered(row, blocks, moment)
    importance = block_importance(bench, layer, row) if row.k_fine_tokens else None
    restored = _encode(row, encoder, search_weight(bench, layer, row), importance)
    restored = restored.gather(3, order.argsort(-1)[:, None, None].expand_as(restored))
    if token_scale is not None:
        restored = restored * token_scale
    return restored.flatten(1, 2)


def compress_keys(bench: Bench, layer: int, row: Row) -> Tensor:
    """[P, H, T, d]: exact sinks and window, restored blocks."""
    exact = bench.qkv[layer][1]
    end = row.num_cold(bench.num_prefix)
    if row.k_exact:
        return exact
    moment = key_moment(bench, layer, row)
    keys = exact
    if row.k_before_rope:
        keys = bench.model.rope(keys, slice(0, bench.num_prefix), inverse=True)
        moment = _turn_back(bench, moment, end // BLOCK_TOKENS)
    plain_keys, plain_moment = keys, moment.mean(2)
    keys, moment = keys.flatten(0, 1), moment.flatten(0, 1)
    rotation = _rotation(row.k_rotation, keys[:, row.num_sinks : end], moment.mean(1))
    if rotation is not None:
        undo = torch.linalg.inv(rotation.double()).float()
        keys = keys @ rotation.transpose(1, 2)
        moment = undo.transpose(1, 2)[:, None] @ moment @ undo[:, None]
    mean_moment = moment.mean(1)

    cold = keys[:, :end].clone()
    cold[:, : row.num_sinks] = cold[:, row.num_sinks, None]  # they must not widen a range
    pattern = torch.zeros_like(cold)
    if row.patterns_k:
        if row.pattern_source == "prompt":
            table = mine(keys[:, row.num_sinks :], row.patterns_k, row.k_kmeans, mean_moment)
        else:
            chosen = bench.passages_of(row.pattern_text), row.num_sinks
            table = mine_shared(plain_keys, *chosen, row.patterns_k, row.k_kmeans, plain_moment)
            table = table if rotation is None else fp16(table @ rotation.transpose(1, 2))
        if row.k_assign == "l2":
            ids = assign(cold, table)
        elif row.k_assign == "moment":
            ids = assign_by_moment(cold, table, mean_moment)
        else:
            weight = mean_moment.diagonal(dim1=-2, dim2=-1)
            ids = assign_jointly(cold, table, weight, row.k_group_tokens)
        pattern = take(table, ids)
    restored = pattern + _compress_blocks(bench, layer, row, cold - pattern, moment)
    if rotation is not None:
        restored = restored @ undo.transpose(1, 2)
    restored = restored.unflatten(0, exact.shape[:2])
    if row.k_before_rope:
        restored = bench.model.rope(restored, slice(0, end))
    result = exact.clone()
    result[:, :, row.num_sinks : end] = fp16(restored[:, :, row.num_sinks :])
    return result
