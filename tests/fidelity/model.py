"""A Llama forward pass in PyTorch, and the bench: exact run, compressed cache, scores.

P passages, H kv heads, Q query heads, T tokens, d head_dim. All arithmetic is fp32; K (after rotary
embedding) and V are rounded to fp16 where a cache would hold them.
"""

import json
import math
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

PASSAGES_AT_ONCE = 4


def fp16(x: Tensor) -> Tensor:
    """Rounded to fp16, as fp32."""
    return x.clamp(-65504, 65504).half().float()


class Model:
    """A Hugging Face directory of a Llama without scaled rotary embedding, one safetensors file."""

    def __init__(self, folder: str, device: str, max_tokens: int):
        self.device = device
        self.config: dict[str, Any] = json.loads(Path(folder, "config.json").read_text())
        config = self.config
        if config.get("rope_scaling"):
            raise ValueError(f"{folder}: rope_scaling {config['rope_scaling']} is not done here")
        weights = load_file(str(Path(folder, "model.safetensors")))
        self.weights = {name: w.float().to(device) for name, w in weights.items()}
        self.num_layers: int = config["num_hidden_layers"]
        self.num_qo_heads: int = config["num_attention_heads"]
        self.num_kv_heads: int = config["num_key_value_heads"]
        self.head_dim: int = config.get("head_dim", config["hidden_size"] // self.num_qo_heads)
        self.queries_per_kv = self.num_qo_heads // self.num_kv_heads
        exponent = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        frequency = 1.0 / config["rope_theta"] ** exponent
        angle = torch.outer(torch.arange(max_tokens).float(), frequency)
        angle = torch.cat([angle, angle], -1)
        self.cos, self.sin = angle.cos().to(device), angle.sin().to(device)

    def weight(self, layer: int, name: str) -> Tensor:
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def rope(self, x: Tensor, positions: Any, inverse: bool = False) -> Tensor:
        """Rotary embedding, half-split, of x [.., T, d] at positions (slice or index [T])."""
        half = self.head_dim // 2
        cos, sin = self.cos[positions], self.sin[positions]
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cos + turned * (-sin if inverse else sin)

    def output_moment(self, layer: int) -> Tensor:
        """W_o' W_o of the output columns of each kv head's query heads: [H, d, d]."""
        w = self.weight(layer, "self_attn.o_proj").view(-1, self.num_qo_heads, self.head_dim)
        grams = [w[:, i].T @ w[:, i] for i in range(self.num_qo_heads)]
        r = self.queries_per_kv
        return torch.stack([sum(grams[h * r : h * r + r]) for h in range(self.num_kv_heads)])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + self.config["rms_norm_eps"]) * weight

    def _qkv(self, layer: int, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        num_passages, count, _ = x.shape
        x = self._norm(x, self.weight(layer, "input_layernorm"))

        def heads(name: str) -> Tensor:
            y = x @ self.weight(layer, f"self_attn.{name}_proj").T
            return y.view(num_passages, count, -1, self.head_dim).transpose(1, 2)

        where = slice(first, first + count)
        return self.rope(heads("q"), where), fp16(self.rope(heads("k"), where)), fp16(heads("v"))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [P, Q, n, d] are the last n of the T tokens of k, v [P, H, T, d]."""
        count, num_tokens = q.shape[2], k.shape[2]
        seen = torch.ones(count, num_tokens, dtype=torch.bool, device=self.device)
        seen = seen.tril(num_tokens - count)
        outputs = []
        for p in range(len(q)):  # one at a time: the scores are the largest tensor
            keys = k[p].repeat_interleave(self.queries_per_kv, 0)
            scores = (q[p] @ keys.transpose(-1, -2)) / math.sqrt(self.head_dim)
            scores = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            outputs.append(scores @ v[p].repeat_interleave(self.queries_per_kv, 0))
        return torch.stack(outputs)

    def _rest(self, layer: int, x: Tensor, attended: Tensor) -> Tensor:
        num_passages, count, _ = x.shape
        attended = attended.transpose(1, 2).reshape(num_passages, count, -1)
        x = x + attended @ self.weight(layer, "self_attn.o_proj").T
        y = self._norm(x, self.weight(layer, "post_attention_layernorm"))
        gate = functional.silu(y @ self.weight(layer, "mlp.gate_proj").T)
        return x + (gate * (y @ self.weight(layer, "mlp.up_proj").T)) @ self.weight(
            layer, "mlp.down_proj"
        ).T

    def forward(
        self, tokens: Tensor, first: int = 0, cache: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Hidden states [P, n, hidden] of tokens [P, n], the first of which is token `first`, over
        the cache (K, V of a layer) of those before; and q, k, v of each layer."""
        x, qkv = self.weights["model.embed_tokens.weight"][tokens], []
        for layer in range(self.num_layers):
            q, k, v = self._qkv(layer, x, first)
            qkv.append((q, k, v))
            if cache is not None:
                k = torch.cat([cache[layer][0], k], 2)
                v = torch.cat([cache[layer][1], v], 2)
            x = self._rest(layer, x, self._attend(q, k, v))
        return x, qkv

    def log_probabilities(self, x: Tensor) -> Tensor:
        x = self._norm(x, self.weights["model.norm.weight"])
        tied = self.weights["model.embed_tokens.weight"]
        return (x @ self.weights.get("lm_head.weight", tied).T).log_softmax(-1)


class Scores(NamedTuple):
    """Means over the scored tokens of each passage, [P]."""

    kl: Tensor  # KL(exact, compressed) of the next token, nats
    nll_change: Tensor
    top1: Tensor  # share of tokens whose likeliest successor is the same


class Bench:
    """Passages, their exact run, and what compression of their prefix costs.

    `qkv[layer]`: exact q [P, Q, T, d], k and v [P, H, T, d] of the prefix.
    """

    def __init__(
        self, model: Model, tokens: Tensor, text_of: list[int], num_prefix: int, num_score: int
    ):
        """tokens [P, num_prefix + num_score + 1], the first one BOS; text_of: each one's text."""
        self.model, self.tokens, self.text_of = model, tokens, text_of
        self.num_prefix, self.num_score = num_prefix, num_score
        self.memo: dict[Any, Any] = {}
        parts: list[list[tuple[Tensor, ...]]] = [[] for _ in range(model.num_layers)]
        exact, nll = [], []
        for batch in self._batches():
            end = num_prefix + num_score
            x, qkv = model.forward(batch[:, :end])
            for layer, part in enumerate(parts):
                part.append(tuple(a[:, :, :num_prefix].clone() for a in qkv[layer]))
            log_p = model.log_probabilities(x[:, num_prefix:])
            exact.append(log_p.half())
            nll.append(self._nll(log_p, batch))
        self.qkv = [tuple(torch.cat(a) for a in zip(*part)) for part in parts]
        self._exact, self._exact_nll = exact, nll

    def _batches(self) -> list[Tensor]:
        return [t.to(self.model.device).long() for t in self.tokens.split(PASSAGES_AT_ONCE)]

    def _nll(self, log_p: Tensor, tokens: Tensor) -> Tensor:
        following = tokens[:, self.num_prefix + 1 : self.num_prefix + self.num_score + 1]
        return -log_p.gather(-1, following[..., None])[..., 0]

    def passages_of(self, text: int) -> list[int]:
        found = [p for p, index in enumerate(self.text_of) if index == text]
        if not found:
            raise ValueError(f"text {text}: no passage is of it")
        return found

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """compute(), remembered under `key` for later rows."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]

    def score(self, cache: list[tuple[Tensor, Tensor]]) -> Scores:
        """cache: K, V [P, H, T, d] of each layer's prefix."""
        parts, first = [], 0
        for batch, exact, exact_nll in zip(self._batches(), self._exact, self._exact_nll):
            here = slice(first, first + len(batch))
            past = [(k[here], v[here]) for k, v in cache]
            first += len(batch)
            scored = batch[:, self.num_prefix : self.num_prefix + self.num_score]
            log_p = self.model.log_probabilities(
                self.model.forward(scored, self.num_prefix, past)[0]
            )
            exact = exact.float()
            parts.append(
                (
                    (exact.exp() * (exact - log_p)).sum(-1).mean(-1),
                    (self._nll(log_p, batch) - exact_nll).mean(-1),
                    (log_p.argmax(-1) == exact.argmax(-1)).float().mean(-1),
                )
            )
        return Scores(*(torch.cat(a) for a in zip(*parts)))
