"""Draws panels of the boards without Grafana: one HTML page of SVG that needs nothing else.

Pure: from boards (deploy/grafana) and samples to text. board_picture.py has the samples.
"""

import html
import math
import re
import time
from dataclasses import dataclass

# What the page shows of each board, in the boards' own titles and order.
MAIN_PANELS = {
    "overview.json": [
        "Cache calls by status",
        "Duration of a Get",
        "Tokens found in lookups",
        "Memory in use by tier",
    ],
    "cache.json": [
        "Bytes as fp16 and on the wire",
        "Compression ratio by preset",
        "Evictions",
        "Age of what is evicted",
    ],
    "inference.json": [
        "Tokens per second",
        "Time to first token, and our share",
        "Duration of a cache call",
        "Wait in the queue",
    ],
}
COLUMNS = 4
CARD_WIDTH, PLOT_HEIGHT = 372, 168
LEFT, RIGHT, TOP, BOTTOM = 60, 8, 8, 22
# Told apart by most colour-blind readers too (Tableau 10, the pale ones left out).
COLORS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#79706e"]

STYLE = f"""
body {{ margin: 0; padding: 22px 26px; background: #f4f5f7; color: #1f2430;
  font: 13px/1.4 "DejaVu Sans", Verdana, sans-serif; }}
h1 {{ font-size: 21px; margin: 0 0 2px; }}
h2 {{ font-size: 15px; margin: 18px 0 8px; color: #3b4252; }}
p {{ margin: 0; color: #5b6270; }}
.row {{ display: grid; grid-template-columns: repeat({COLUMNS}, {CARD_WIDTH}px); gap: 12px; }}
.card {{ background: #fff; border: 1px solid #dcdfe4; border-radius: 4px; padding: 10px 10px 8px; }}
.card h3 {{ font-size: 13px; margin: 0 0 4px; }}
.legend {{ font-size: 11px; color: #3b4252; padding-left: 4px; }}
.legend span {{ display: inline-block; margin-right: 12px; white-space: nowrap; }}
.legend i {{ display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 0; }}
.legend b {{ font-weight: 600; margin-left: 5px; }}
text {{ font: 10.5px "DejaVu Sans", Verdana, sans-serif; fill: #5b6270; }}
"""


@dataclass
class Series:
    """One line: its legend, and (seconds since the epoch, value) in order of time."""

    label: str
    points: list

    def finite(self):
        return [value for _, value in self.points if math.isfinite(value)]


def scaled(value, steps):
    """The number in the largest unit of `steps`, (factor, unit) from small to large, not above."""
    chosen = steps[0]
    for step in steps:
        if abs(value) >= step[0]:
            chosen = step
    number = value / chosen[0]
    digits = 0 if abs(number) >= 100 or number == int(number) else 1 if abs(number) >= 10 else 2
    shown = f"{number:.{digits}f}"
    if "." in shown:
        shown = shown.rstrip("0").rstrip(".")
    return f"{shown}{chosen[1]}"


BINARY = [(1, " B"), (1 << 10, " KiB"), (1 << 20, " MiB"), (1 << 30, " GiB"), (1 << 40, " TiB")]
DECIMAL = [(1, ""), (1e3, " K"), (1e6, " M"), (1e9, " G")]
RATE = [(1, " B/s"), (1e3, " kB/s"), (1e6, " MB/s"), (1e9, " GB/s")]
SECONDS = [(1e-6, " µs"), (1e-3, " ms"), (1, " s"), (60, " min"), (3600, " h")]


def format_value(value, unit):
    """As a panel of this unit (board_schema.UNITS) shows a value."""
    if not math.isfinite(value):
        return "–"
    if unit == "s":
        return "0 s" if value == 0 else scaled(value, SECONDS)
    if unit == "percentunit":
        return scaled(100 * value, [(1, " %")])
    if unit in ("reqps", "ops"):
        return scaled(value, DECIMAL) + ("/s" if unit == "ops" else " req/s")
    return scaled(value, {"bytes": BINARY, "Bps": RATE}.get(unit, DECIMAL))


def ticks(high, unit):
    """From 0 to the first round number that is not below `high`, in three to five steps."""
    if high <= 0:
        return [0, 1]
    if unit == "s" and 60 < high <= 5 * 3600:
        step = next(each for each in (15, 30, 60, 300, 900, 3600) if high / each <= 5)
    elif unit == "bytes":
        step = 2.0 ** math.ceil(math.log2(high / 5))
    else:
        power = 10.0 ** math.floor(math.log10(high / 5))
        step = power * next(each for each in (1, 2, 2.5, 5, 10) if high / 5 <= power * each * 1.001)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def legend_of(labels, template):
    """Grafana's legendFormat: {{label}} is replaced by the label's value."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template).strip()


def path(points, x_of, y_of):
    """Of an SVG line; it is broken where there is no number."""
    commands, drawing = [], False
    for at, value in points:
        if not math.isfinite(value):
            drawing = False
            continue
        commands.append(f"{'L' if drawing else 'M'}{x_of(at):.1f} {y_of(value):.1f}")
        drawing = True
    return "".join(commands)


def stack(series):
    """Each series on those before it; all have the same times once gaps are zeros."""
    times = sorted({at for each in series for at, _ in each.points})
    below = dict.fromkeys(times, 0.0)
    for each in series:
        values = {at: value for at, value in each.points if math.isfinite(value)}
        base = dict(below)
        for at in times:
            below[at] += values.get(at, 0.0)
        yield each, [(at, base[at]) for at in times], [(at, below[at]) for at in times]


class Plot:
    """The axes of one panel: where times and values stand."""

    def __init__(self, start, end, high, unit):
        self.start, self.end = start, max(end, start + 1)
        self.ticks, self.unit = ticks(high, unit), unit
        self.width, self.height = CARD_WIDTH - 20, PLOT_HEIGHT

    def x(self, at):
        inner = self.width - LEFT - RIGHT
        return LEFT + inner * (at - self.start) / (self.end - self.start)

    def y(self, value):
        inner = self.height - TOP - BOTTOM
        # A panel with a maximum cuts off what is above it.
        return TOP + inner * (1 - min(value / self.ticks[-1], 1))

    def grid(self):
        for value in self.ticks:
            y = self.y(value)
            yield f'<path d="M{LEFT} {y:.1f}H{self.width - RIGHT}" stroke="#e7e9ed"/>'
            shown = html.escape(format_value(value, self.unit))
            yield f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{shown}</text>'
        minutes = (self.end - self.start) / 60
        step = next(step for step in (0.5, 1, 2, 5, 10, 30, 60, 1e9) if minutes / step <= 6)
        for i in range(int(minutes / step) + 1):
            x = self.x(self.start + 60 * step * i)
            yield f'<path d="M{x:.1f} {TOP}V{self.height - BOTTOM}" stroke="#f1f2f5"/>'
            label = f"{step * i:g} min" if i else "0"
            anchor = "end" if x > self.width - RIGHT - 20 else "middle"
            yield f'<text x="{x:.1f}" y="{self.height - 6}" text-anchor="{anchor}">{label}</text>'


def lines(plot, series, stacked):
    for color, each in zip(COLORS * (1 + len(series) // len(COLORS)), series):
        if not stacked:
            line = path(each.points, plot.x, plot.y)
            yield f'<path d="{line}" fill="none" stroke="{color}" stroke-width="1.8"/>'
    if stacked:
        for color, (_, low, high) in zip(COLORS * (1 + len(series) // len(COLORS)), stack(series)):
            top, bottom = path(high, plot.x, plot.y), path(low[::-1], plot.x, plot.y)
            area = top + bottom.replace("M", "L") + "Z"
            yield f'<path d="{area}" fill="{color}" fill-opacity="0.35"/>'
            yield f'<path d="{top}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def legend(series, hidden, unit):
    parts = []
    for color, each in zip(COLORS * (1 + len(series) // len(COLORS)), series):
        values = each.finite()
        last = format_value(values[-1] if values else math.nan, unit)
        parts.append(
            f'<span><i style="background:{color}"></i>{html.escape(each.label)}'
            f"<b>{html.escape(last)}</b></span>"
        )
    if hidden:
        parts.append(f"<span>and {hidden} at zero</span>")
    return f'<div class="legend">{"".join(parts)}</div>'


def card(panel, series, start, end):
    """One panel. Series that are zero all the time are counted, not drawn."""
    defaults = panel["fieldConfig"]["defaults"]
    unit, stacked = defaults["unit"], "custom" in defaults
    shown = [each for each in series if any(each.finite())] or series[:1]
    if stacked:
        # The largest below, where it is read.
        shown.sort(key=lambda each: -sum(each.finite()))
    tops = [high for _, _, high in stack(shown)] if stacked else [each.points for each in shown]
    values = [value for points in tops for _, value in points if math.isfinite(value)]
    plot = Plot(start, end, defaults.get("max", max(values, default=0)), unit)
    drawing = "".join([*plot.grid(), *lines(plot, shown, stacked)])
    return (
        f'<div class="card"><h3>{html.escape(panel["title"])}</h3>'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{plot.width}" height="{plot.height}">'
        f"{drawing}</svg>{legend(shown, len(series) - len(shown), unit)}</div>"
    )


def render(found, samples, start, end, note):
    """The page. `found` are the boards by file; `samples(panel)` gives the Series of a panel."""
    parts = []
    for file, titles in MAIN_PANELS.items():
        board = found[file]
        panels = {panel["title"]: panel for panel in board["panels"]}
        cards = "".join(card(panels[title], samples(panels[title]), start, end) for title in titles)
        heading = html.escape(board["title"].removeprefix("patternkv / "))
        parts.append(f'<h2>{heading}</h2><div class="row">{cards}</div>')
    day = time.strftime("%Y-%m-%d", time.gmtime(start))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f"<title>patternkv</title><style>{STYLE}</style></head><body>"
        f"<h1>patternkv</h1><p>{html.escape(note)} {day}</p>{''.join(parts)}</body></html>\n"
    )
