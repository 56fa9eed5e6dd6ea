"""A row: one way to compress K and V. Its fields are the switches of `lab.py --row`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

BLOCK_TOKENS = 128
FINE_BITS = 4


def switch(default: Any, meaning: str, choices: str = "") -> Any:
    metadata = {"meaning": meaning, "choices": choices.split()}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Row:
    """The first eight switches are those of `pkvctl eval --preset` (codec_params_text.cc)."""

    name: str
    bits_k: int = switch(2, "bits of a K code")
    bits_v: int = switch(2, "bits of a V code")
    k_group_tokens: int = switch(128, "tokens of one channel that share a K scale; divides 128")
    v_group_channels: int = switch(128, "channels of one token that share a V scale")
    num_patterns_k: int = switch(32, "K patterns of a (layer, kv head); 0: none")
    num_patterns_v: int = switch(32, "V patterns of a (layer, kv head); 0: none")
    num_sinks: int = switch(16, "first tokens, kept fp16; below 128")
    recent_tokens: int = switch(128, "newest tokens of the prefix that are kept fp16, at least")

    pattern_source: str = switch("prompt", "what patterns are mined from", "prompt text none")
    pattern_text: int = switch(0, "pattern_source=text: which of --text, from 0, mines for all")
    k_kmeans: str = switch("l2", "distance that mines K patterns", "l2 moment gain_shape")
    v_kmeans: str = switch("l2", "distance that mines V patterns", "l2 moment gain_shape")
    k_assign: str = switch(
        "l2", "how K finds its pattern; joint: by the ranges of its group", "l2 moment joint"
    )

    k_clip: float = switch(1.0, "K: lowest shrink ratio of the clip search, steps of 0.05; 1: none")
    v_clip: float = switch(0.4, "V: the same")
    k_clip_norm: float = switch(2.0, "K: the search minimises the sum of |error| to this power")
    v_clip_norm: float = switch(2.0, "V: the same; the gate judges squared error")
    k_clip_importance: float = switch(0.0, "K: search weighted by importance to this power; 0: not")
    k_gain: float = switch(0.0, "K: slope of restored on exact values; 1: unbiased; 0: as it is")
    v_gain: float = switch(0.0, "V: the same")
    k_levels: str = switch("uniform", "K: levels of a code; lloyd: 2 bits only", "uniform lloyd")
    v_levels: str = switch("uniform", "V: the same", "uniform lloyd")
    importance: str = switch(
        "mass",
        "a token's: sum over later queries of p, of p^2, of p^2 |v - o|^2",
        "mass squared value",
    )

    k_rotation: str = switch("none", "rotation of K (and q)", "none hadamard query whitening")
    v_rotation: str = switch("none", "rotation of V (and the output)", "none hadamard")
    k_before_rope: bool = switch(False, "K is compressed with its rotary embedding undone")
    k_token_scale: float = switch(0.0, "K: one more scale a token, its norm to this power; 0: none")

    k_feedback: bool = switch(False, "K: error feedback over channels by the query moment")
    k_damping: float = switch(0.01, "K: share of the moment's mean diagonal added to the diagonal")
    k_order: str = switch(
        "descending",
        "K: order of the channels by the moment's diagonal; variance: times the residual's",
        "descending ascending natural variance",
    )
    k_sweeps: int = switch(0, "K: coordinate descent sweeps after feedback")
    k_moment: str = switch(
        "prompt",
        "query moment: all prompt queries, weighted (see importance), per block, of one text",
        "prompt mass squared value block text",
    )
    k_moment_last: int = switch(0, "k_moment=prompt or text: only the last N queries; 0: all")
    k_moment_every: int = switch(1, "k_moment=prompt or text: only every Nth query")
    k_moment_text: int = switch(0, "k_moment=text: which of --text, from 0, calibrates for all")
    k_moment_mix: float = switch(0.2, "k_moment=block: share of the mean over the blocks")
    v_feedback: bool = switch(False, "V: error feedback over channels by W_o' W_o")
    v_damping: float = switch(0.01, "V: as k_damping")
    v_sweeps: int = switch(0, "V: as k_sweeps")

    k_fine_tokens: int = switch(0, "K: tokens of a block with 4-bit codes on the same scales")
    k_fine_select: str = switch(
        "importance", "K: which ones", "importance error error_importance"
    )
    k_fine_exclude: bool = switch(False, "K: fine tokens count neither in the range nor the search")
    k_fine_extension: float = switch(0.375, "K: the fine grid's reach beyond either end, in steps")

    k_exact: bool = switch(False, "K stays exact: what V alone costs")
    v_exact: bool = switch(False, "V stays exact: what K alone costs")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[1:]:
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f'{field.name} "{value}" not in {choices}')
            if not choices and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} {value} is negative or not finite")
        for bits, levels in ((self.bits_k, self.k_levels), (self.bits_v, self.v_levels)):
            if not 1 <= bits <= 8 or (levels == "lloyd" and bits != 2):
                raise ValueError(f"{bits} bits not in 1..8, or not 2 with Lloyd levels")
        for ratio in (self.k_clip, self.v_clip):
            if not 0 < ratio <= 1:
                raise ValueError(f"clip ratio {ratio} not in (0, 1]")
        if self.k_group_tokens < 2 or BLOCK_TOKENS % self.k_group_tokens:
            raise ValueError(f"k_group_tokens {self.k_group_tokens} not 2 or more dividing 128")
        if self.v_group_channels < 2 or self.k_moment_every < 1:
            raise ValueError(
                f"v_group_channels {self.v_group_channels} below 2, or "
                f"k_moment_every {self.k_moment_every} below 1"
            )
        if not 0 <= self.k_fine_tokens < BLOCK_TOKENS - self.num_sinks or self.num_sinks < 0:
            raise ValueError(
                f"{self.k_fine_tokens} fine tokens and {self.num_sinks} sinks not below 128"
            )
        if self.k_fine_tokens and self.bits_k >= FINE_BITS:
            raise ValueError(f"fine tokens have {FINE_BITS} bits: bits_k {self.bits_k} not below")
        if self.k_sweeps and not self.k_feedback or self.v_sweeps and not self.v_feedback:
            raise ValueError("sweeps descend on what feedback wrote: set k_feedback, v_feedback")

    @property
    def patterns_k(self) -> int:
        return 0 if self.pattern_source == "none" else self.num_patterns_k

    @property
    def patterns_v(self) -> int:
        return 0 if self.pattern_source == "none" else self.num_patterns_v

    def num_cold(self, num_tokens: int) -> int:
        """Tokens of a prefix that stand in blocks, a multiple of 128 (window rule `rolling`)."""
        return (num_tokens - self.recent_tokens) // BLOCK_TOKENS * BLOCK_TOKENS

    def bits(self, head_dim: int) -> dict[str, float]:
        """Bits an element of K and V, averaged, by what they are for. Without tables and windows.

        Token scales are fp16. Fine tokens cost no ids: a block may hold its tokens in any order.
        """
        fine = self.k_fine_tokens / BLOCK_TOKENS
        scale = 16 / self.k_group_tokens, 16 / min(self.v_group_channels, head_dim)
        most = max(self.patterns_k, self.patterns_v)
        pattern_id = 0 if most == 0 else 8 if most < 256 else 16
        parts = {
            "codes": (self.bits_k + self.bits_v + fine * (FINE_BITS - self.bits_k)) / 2,
            "scales": (sum(scale) + (16 / head_dim if self.k_token_scale else 0)) / 2,
            "zeros": sum(scale) / 2,
            "ids": pattern_id / head_dim,
        }
        return {"total": sum(parts.values()), **parts}


SWITCHES = {field.name: field for field in dataclasses.fields(Row)[1:]}


def _value(field: dataclasses.Field, text: str) -> Any:
    if field.type is bool:
        if text not in ("0", "1", "false", "true"):
            raise ValueError(f'{field.name} "{text}" not in {{0, 1, false, true}}')
        return text in ("1", "true")
    try:
        return field.type(text)
    except ValueError:
        raise ValueError(f'{field.name} "{text}" is not of type {field.type.__name__}') from None


def parse_row(text: str) -> Row:
    """`name` or `name:key=value,key=value`."""
    name, _, pairs = text.partition(":")
    values = {}
    for pair in filter(None, pairs.split(",")):
        key, equals, value = pair.partition("=")
        if key not in SWITCHES or not equals:
            raise ValueError(f'"{pair}": no KEY=VALUE of a switch (--list shows them)')
        values[key] = _value(SWITCHES[key], value)
    return Row(name, **values)


def list_switches() -> str:
    lines = []
    for field in SWITCHES.values():
        choices = "|".join(field.metadata["choices"]) or field.type.__name__
        default = int(field.default) if field.type is bool else field.default
        lines.append(f"{field.name}={default}  ({choices})\n    {field.metadata['meaning']}")
    return "\n".join(lines)
