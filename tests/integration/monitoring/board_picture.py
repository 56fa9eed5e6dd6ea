"""Photographs the boards' main graphs: deploy/grafana/boards.png.

Usage: board_picture.py --binaries .build/release [--seconds 240] [--html FILE] [--png FILE]

Starts the fleet of the monitoring test and a real Prometheus, loads them in three phases, queries
the boards' expressions over that time, writes the page of board_page.py, and has a headless
Chromium (Debian: apt-get install --no-install-recommends chromium fonts-dejavu-core) photograph it.
Without --png no Chromium is needed.

What else runs shows: under a compiler of higher priority throughput falls to a tenth, the workers'
threads being ready to run and not running (/proc/PID/task/*/schedstat).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import board_page
import boards
import fleet

SOURCE = Path(__file__).resolve().parents[3]
# So that the cache fills in the first third and evicts after it.
CAPACITY = "32MiB"
# (share of the time, load): one caller with much in common, two with less, one again.
PHASES = [
    (0.35, {"concurrency": 1, "shared_prefix": 0.75}),
    (0.35, {"concurrency": 2, "shared_prefix": 0.5}),
    (0.3, {"concurrency": 1, "shared_prefix": 0.9}),
]
# Long enough for windows and pattern tables to be the small part that they are of real prompts.
PROMPTS, OUTPUT_TOKENS = "uniform:700:1000", 32
STEP_S = 2
RATE_INTERVAL = "20s"
CHROMIUM_PATIENCE_S = 120


def samples_of(prometheus, start, end):
    """What board_page.render asks for: the Series of a panel, from a real Prometheus."""

    def samples(panel):
        found = []
        for target in panel["targets"]:
            query = boards.substitute(target["expr"], __rate_interval=RATE_INTERVAL)
            for labels, points in prometheus.query_range(query, start, end, STEP_S):
                found.append(
                    board_page.Series(board_page.legend_of(labels, target["legendFormat"]), points)
                )
        return found

    return samples


def photograph(page, png):
    """Height and width are those of the page's content."""
    height = 98 + 292 * len(board_page.MAIN_PANELS)
    width = 64 + (board_page.CARD_WIDTH + 12) * board_page.COLUMNS
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={width},{height}", f"--screenshot={png}", page.resolve().as_uri()]
    subprocess.run(command, check=True, timeout=CHROMIUM_PATIENCE_S, stderr=subprocess.DEVNULL)


def record(arguments, scratch):
    """The page's text, of a fleet that is started, loaded and ended."""
    processes = fleet.Fleet(arguments.binaries, SOURCE, scratch, capacity=CAPACITY)
    try:
        prometheus = fleet.Prometheus(SOURCE, processes, scratch)
        try:
            prometheus.wait_for_samples("count_over_time(up[1m]) > 1", len(fleet.ROLES), "scrapes")
            start = time.time()
            for share, options in PHASES:
                processes.load(
                    arguments.seconds * share, prompts=PROMPTS, output=OUTPUT_TOKENS, **options
                )
            end = time.time()
            note = (
                "pkvd, a prefill and a decode worker on two CPU cores under pkv-bench serve; "
                f"prompts of 700 to 1,000 tokens, {CAPACITY} for objects. "
                "The boards' own expressions."
            )
            found = boards.read_all(SOURCE)
            return board_page.render(found, samples_of(prometheus, start, end), start, end, note)
        finally:
            prometheus.close()
    finally:
        processes.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=Path, required=True, help="the build folder")
    parser.add_argument("--seconds", type=float, default=240, help="of load")
    parser.add_argument("--html", type=Path, help="keep the page there")
    parser.add_argument("--png", type=Path, help="photograph it there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = arguments.html or Path(scratch) / "boards.html"
        page.write_text(record(arguments, Path(scratch)), encoding="utf-8")
        if arguments.png:
            photograph(page, arguments.png)
            print(f"{arguments.png}: {arguments.png.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
