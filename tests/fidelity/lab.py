#!/usr/bin/env python3
"""Measures what a way of compressing the KV cache costs; README.md of this folder says how.

K and V of a prefix are compressed and restored in PyTorch; the tokens that follow are scored over
them and compared with the uncompressed model.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from row import Row, list_switches, parse_row


def cut_passages(
    model: Path, texts: list[Path], num_passages: int, count: int
) -> tuple[list[list[int]], list[int]]:
    """BOS and `count` tokens, num_passages times, and each one's text: those that `pkvctl eval`
    cuts (worker/eval/passages.cc), texts in turn, in the middle of equal shares of a text."""
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    bos = json.loads((model / "config.json").read_text()).get("bos_token_id", 1)
    passages: dict[int, list[int]] = {}
    for text, path in enumerate(texts[:num_passages]):
        ids = tokenizer.encode(path.read_bytes().decode())
        room = len(ids) - count
        if room < 0:
            raise ValueError(f"{path} has {len(ids)} tokens; a passage needs {count}")
        indices = range(text, num_passages, len(texts))
        for i, index in enumerate(indices):
            begin = room * (2 * i + 1) // (2 * len(indices))
            passages[index] = [bos, *ids[begin : begin + count]]
    tokens = [passages[index] for index in range(num_passages)]
    return tokens, [index % len(texts) for index in range(num_passages)]


def summary(kl: Any, nll_change: Any) -> dict[str, float]:
    return {"kl": kl.mean().item(), "dppl_percent": (math.exp(nll_change.mean()) - 1) * 100}


def measure(bench: Any, row: Row, text_names: list[str], diagnosed: bool) -> dict[str, Any]:
    from attention_statistics import diagnose
    from keys import compress_keys
    from values import compress_values

    started = time.monotonic()
    layers = range(bench.model.num_layers)
    cache = [(compress_keys(bench, i, row), compress_values(bench, i, row)) for i in layers]
    scores = bench.score(cache)
    kl_error = scores.kl.std() / math.sqrt(len(scores.kl)) if len(scores.kl) > 1 else math.nan
    result = {
        "row": dataclasses.asdict(row),
        "bits": row.bits(bench.model.head_dim),
        **summary(scores.kl, scores.nll_change),
        "kl_standard_error": float(kl_error) if math.isfinite(kl_error) else None,
        "top1_percent": scores.top1.mean().item() * 100,
        "texts": {
            text_names[text]: summary(scores.kl[at], scores.nll_change[at])
            for text in sorted(set(bench.text_of))
            for at in [bench.passages_of(text)]
        },
        "seconds": time.monotonic() - started,
    }
    if diagnosed:
        result["layers"] = [diagnose(bench, i, row, *cache[i])._asdict() for i in layers]
    return result


def report(result: dict[str, Any]) -> str:
    bits = result["bits"]
    parts = " ".join(f"{name} {bits[name]:.3f}" for name in ("codes", "scales", "zeros", "ids"))
    error = result["kl_standard_error"]
    lines = [
        f"{result['row']['name']:24s} bits {bits['total']:.3f} ({parts})  KL {result['kl']:.6f}"
        f" +- {math.nan if error is None else error:.6f}  dPPL {result['dppl_percent']:+.3f}%"
        f"  top-1 {result['top1_percent']:.2f}%  [{result['seconds']:.0f} s]",
        "    KL / dPPL: "
        + "  ".join(
            f"{name} {text['kl']:.5f} / {text['dppl_percent']:+.2f}%"
            for name, text in result["texts"].items()
        ),
    ]
    for index, layer in enumerate(result.get("layers", [])):
        lines.append(f"    layer {index}: " + "  ".join(f"{k} {v:+.4f}" for k, v in layer.items()))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--list", action="store_true", help="print the switches of a row and end")
    parser.add_argument("--model", type=Path, help="Hugging Face directory with tokenizer.model")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="UTF-8 texts")
    parser.add_argument("--passages", type=int, default=24, help="of all texts together")
    parser.add_argument("--prefix", type=int, default=3072, help="tokens to compress, with BOS")
    parser.add_argument("--score", type=int, default=1023, help="tokens scored after the prefix")
    parser.add_argument("--row", action="append", default=[], help="name:key=value,key=value")
    parser.add_argument("--diagnose", action="store_true", help="what the error is, by layer")
    parser.add_argument("--json", type=Path, help="also writes the results here")
    parser.add_argument("--device", help="PyTorch device; the GPU if there is one")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.list:
        print(list_switches())
        return 0
    if not (arguments.model and arguments.text and arguments.row):
        parser.error("--model, --text and --row are needed (or --list)")
    if arguments.passages < 1 or arguments.score < 1:
        parser.error("--passages and --score must be positive")
    try:
        rows = [parse_row(text) for text in arguments.row]
        for row in rows:
            if row.num_cold(arguments.prefix) < 128:
                raise ValueError(f"{row.name}: a prefix of {arguments.prefix} fills no block")
        count = arguments.prefix + arguments.score
        passages, text_of = cut_passages(
            arguments.model, arguments.text, arguments.passages, count
        )
        results = run(arguments, rows, passages, text_of)
    except (OSError, ValueError) as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        settings = {k: str(v) for k, v in vars(arguments).items() if k in ("model", "device")}
        settings |= {k: getattr(arguments, k) for k in ("passages", "prefix", "score")}
        settings["texts"] = [str(path) for path in arguments.text]
        arguments.json.write_text(json.dumps({**settings, "rows": results}, indent=1) + "\n")
    return 0


def run(
    arguments: argparse.Namespace, rows: list[Row], passages: list[list[int]], text_of: list[int]
) -> list[dict[str, Any]]:
    import torch

    from model import Bench, Model

    torch.set_num_threads(arguments.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    with torch.inference_mode():
        model = Model(str(arguments.model), arguments.device, len(passages[0]))
        for row in rows:
            if model.head_dim % min(row.v_group_channels, model.head_dim):
                raise ValueError(
                    f"v_group_channels {row.v_group_channels} does not divide {model.head_dim}"
                )
        bench = Bench(model, torch.tensor(passages), text_of, arguments.prefix, arguments.score)
        for row in rows:
            names = [path.stem for path in arguments.text]
            results.append(measure(bench, row, names, arguments.diagnose))
            print(report(results[-1]), flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
