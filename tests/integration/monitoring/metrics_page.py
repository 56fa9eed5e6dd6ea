"""deploy/METRICS.md, made from what the three processes export.

Usage: metrics_page.py --binaries .build/release    writes it anew; monitoring_test.py compares.
"""

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import fleet

SOURCE = Path(__file__).resolve().parents[3]
PAGE = "deploy/METRICS.md"
# Labels whose values tell of this build or this machine.
OPEN_LABELS = {"version", "revision", "compiler", "grpc_version"}
# Of a series' own type, not of its meaning.
TYPE_LABELS = {"histogram": "le", "summary": "quantile"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}

HEAD = """# Metrics

Every series that a process exports, at zero from its start. Made from their `/metrics` by
`tests/integration/monitoring/metrics_page.py` and compared by the test there: do not edit.

A histogram NAME has the series `NAME_bucket`, `NAME_sum` and `NAME_count`. `process_*` are as of
every Prometheus client; `exposer_*` come from prometheus-cpp.

| metric | type | labels | exported by | what it is |
|---|---|---|---|---|
"""

# What an operator of caches may look for.
NOT_EXPORTED = Path(__file__).resolve().with_name("not_exported.md")


@dataclass
class Family:
    name: str
    type: str
    help: str
    labels: dict = field(default_factory=dict)  # label -> values seen
    series: int = 0

    def names(self):
        """Those of its samples."""
        return {self.name + suffix for suffix in SUFFIXES.get(self.type, ("",))}


def parse(exposition):
    """The families of a page in Prometheus's text format, by name."""
    families, current, helps = {}, None, {}
    for line in exposition.splitlines():
        if line.startswith("# HELP "):
            name, text = line[len("# HELP ") :].split(" ", 1)
            helps[name] = text
        elif line.startswith("# TYPE "):
            name, kind = line[len("# TYPE ") :].split(" ")
            current = families[name] = Family(name, kind, helps.get(name, ""))
        elif line and not line.startswith("#"):
            match = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? \S+", line)
            if match is None or current is None or match[1] not in current.names():
                raise ValueError(f"not a sample of the family before it: {line}")
            current.series += 1
            for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""):
                current.labels.setdefault(label, set()).add(value)
    return families


def labels_text(family):
    parts = []
    for label in sorted(family.labels):
        values = family.labels[label]
        if label == TYPE_LABELS.get(family.type):
            continue
        shown = "..." if label in OPEN_LABELS else ", ".join(sorted(values))
        parts.append(f"`{label}`: {shown}")
    return "; ".join(parts)


def type_text(family):
    if family.type != "histogram":
        return family.type
    bounds = sorted(float(bound) for bound in family.labels["le"] if bound != "+Inf")
    return f"histogram, {len(bounds)} bounds {bounds[0]:g} .. {bounds[-1]:g}"


def render(pages):
    """The document; `pages` are the roles' families. Roles that say the same share a row."""
    rows = {}
    for role, families in pages.items():
        for family in families.values():
            labels = labels_text(family).replace(f"`role`: {role}", "`role`")
            row = (family.name, type_text(family), labels, family.help)
            rows.setdefault(row, []).append(role)
    lines = [
        f"| `{name}` | {kind} | {labels} | {', '.join(roles)} | {text} |\n"
        for (name, kind, labels, text), roles in sorted(rows.items())
    ]
    return HEAD + "".join(lines) + "\n" + NOT_EXPORTED.read_text(encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=Path, required=True, help="the build folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        processes = fleet.Fleet(arguments.binaries, SOURCE, Path(scratch))
        try:
            pages = {role: parse(processes.scrape(role)) for role in fleet.ROLES}
        finally:
            processes.close()
    (SOURCE / PAGE).write_text(render(pages), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
