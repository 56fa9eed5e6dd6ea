"""Runs pkv-bench kernels and, where PyTorch and a GPU are, its fp16 attention on the same shapes:
peers, ours, peers again. Prints the ratios, writes everything as JSON and draws a roofline.

Usage: kernels.py (--bundle DIR | --bench FILE) [--out DIR] [--no-peers] [-- ARGUMENT...]
What follows -- goes to `pkv-bench kernels`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import roofline

STARTED = time.monotonic()

# The ratio to the best fp16 peer that is to be reached, by case and bits of a code.
TARGETS = {
    "1x32k": {"4": 2.3, "2": 3.0},
    "1x128k": {"4": 3.0, "2": 4.5},
    "8x32k": {"4": 3.4, "2": 5.5},
    "32x32k": {"4": 3.6, "2": 6.0},
    "128x4k": {"4": 3.2, "2": 5.0},
}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bundle", type=Path, help="what tests/gpu/bundle.sh made")
    parser.add_argument("--bench", type=Path, help="pkv-bench, when there is no bundle")
    parser.add_argument("--out", type=Path, default=Path("."), help="where files are written")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--repetitions", type=int, default=20, help="of the peers")
    parser.add_argument("rest", nargs="*", help="for pkv-bench kernels, after --")
    parsed = parser.parse_args(arguments)
    if (parsed.bundle is None) == (parsed.bench is None):
        parser.error("exactly one of --bundle and --bench is needed")
    if parsed.bundle is not None:
        parsed.bench = parsed.bundle / "tools" / "pkv-bench"
    return parsed


def bench_environment(bundle):
    """A bundle's libraries are for its binary alone: PyTorch brings its own."""
    environment = dict(os.environ)
    if bundle is not None:
        paths = [str(bundle / "lib"), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = ":".join(path for path in paths if path)
    return environment


def run_bench(parsed, *arguments, **options):
    command = [str(parsed.bench), "kernels", *arguments, *parsed.rest]
    return subprocess.run(command, env=bench_environment(parsed.bundle), check=False, **options)


def load_peers():
    """The module that times PyTorch, or why there is none."""
    try:
        import torch
    except ImportError:
        return None, "PyTorch is not installed"
    if not torch.cuda.is_available():
        return None, "PyTorch sees no GPU"
    import peers

    return peers, ""


def device_state():
    """Clocks and temperature, as the driver tells; empty where there is no nvidia-smi."""
    fields = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    try:
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip()


def best_time(times):
    """(label, median us) of the quickest; None when all refused."""
    medians = [(entry["us"]["median"], label) for label, entry in times.items() if "us" in entry]
    return min(medians)[::-1] if medians else None


def best_peers(*passes):
    """{case: {"name", "us"}}: the quickest of every backend, way and pass."""
    best = {}
    for one_pass in passes:
        for case, times in one_pass.items():
            found = best_time(times)
            if found and (case not in best or found[1] < best[case]["us"]):
                best[case] = {"name": found[0], "us": found[1]}
    return best


def ratio_rows(ours, peers):
    """One row a measurement that has a peer, with its target where there is one."""
    rows = []
    for row in ours["attention"]:
        case, shape = row["case"], row["shape"]
        if case not in peers:
            continue
        tokens = shape["batch"] * shape["context_tokens"]
        moved = 4 * tokens * shape["num_kv_heads"] * shape["head_dim"]
        operations = 4 * tokens * shape["num_qo_heads"] * shape["head_dim"]
        ratio = {
            "case": case,
            "preset": row["preset"],
            "data": row["data"],
            "us": row["us"]["median"],
            "peer": peers[case]["name"],
            "peer_us": peers[case]["us"],
            "ratio": peers[case]["us"] / row["us"]["median"],
            "peer_bytes_per_s": moved / (peers[case]["us"] * 1e-6),
            "peer_operations_per_byte": operations / moved,
        }
        target = TARGETS.get(case, {}).get(roofline.bits_of(row["preset"]))
        if target is not None:
            ratio["target"] = target
        rows.append(ratio)
    return rows


def ratio_table(rows):
    lines = [f"{'case':<20} {'preset':<9} {'data':<7} {'us':>9} {'peer us':>9} {'x':>6} target"]
    for row in rows:
        target = ""
        if "target" in row:
            verdict = "met" if row["ratio"] >= row["target"] else "MISSED"
            target = f"{row['target']:.1f} {verdict}"
        lines.append(
            f"{row['case']:<20} {row['preset']:<9} {row['data']:<7} {row['us']:>9.2f} "
            f"{row['peer_us']:>9.2f} {row['ratio']:>6.2f} {target} ({row['peer']})"
        )
    return "\n".join(lines)


def drift_table(before, after):
    """How the peers' times moved while ours ran: the same label in both passes."""
    lines = []
    for case, times in after.items():
        for label, entry in times.items():
            earlier = before.get(case, {}).get(label, {})
            if "us" in entry and "us" in earlier:
                first, second = earlier["us"]["median"], entry["us"]["median"]
                change = 100 * (second / first - 1)
                lines.append(f"{case:<20} {label:<18} {first:>9.2f} {second:>9.2f} {change:+6.1f}%")
    return "\n".join(lines)


def time_peers(peers, shapes, repetitions, earlier=None):
    """Every case without mixed lengths; after an earlier pass only what was quickest in it."""
    times = {}
    for case, shape in shapes.items():
        if shape["mixed"]:
            continue
        wanted = None
        if earlier is not None:
            best = best_time(earlier[case])
            wanted = [best[0]] if best else []
        times[case] = peers.time_case(peers.Shape(**shape), repetitions, wanted)
    return times


def say(what):
    print(f"[{time.monotonic() - STARTED:6.1f} s] {what}", flush=True)


def main():
    parsed = parse_arguments()
    parsed.out.mkdir(parents=True, exist_ok=True)
    plan = run_bench(parsed, "--plan", stdout=subprocess.PIPE)
    if plan.returncode != 0:
        return plan.returncode
    shapes = json.loads(plan.stdout)
    peers, missing = (None, "--no-peers") if parsed.no_peers else load_peers()
    if peers is None:
        say(f"ours alone: {missing}")
    report = {"states": [device_state()], "peers": []}
    if peers is not None:
        report["libraries"] = peers.describe()
        say(f"peers: {report['libraries']}")
        report["peers"].append(time_peers(peers, shapes, parsed.repetitions))
        report["states"].append(device_state())
    peers_path, ours_path = parsed.out / "peers.json", parsed.out / "ours.json"
    peers_path.write_text(json.dumps(best_peers(*report["peers"])))
    ours_path.unlink(missing_ok=True)
    say("ours")
    ours = run_bench(parsed, "--peers", str(peers_path), "--json", str(ours_path))
    report["states"].append(device_state())
    if not ours_path.exists():
        return ours.returncode or 1
    report["ours"] = json.loads(ours_path.read_text())
    if peers is not None:
        say("peers again")
        again = time_peers(peers, shapes, parsed.repetitions, report["peers"][0])
        report["peers"].append(again)
        print("\npeers before and after ours, us\n" + drift_table(*report["peers"]))
    report["best_peers"] = best_peers(*report["peers"])
    report["ratios"] = ratio_rows(report["ours"], report["best_peers"])
    if report["ratios"]:
        print("\nratio to the best fp16 peer\n" + ratio_table(report["ratios"]))
    (parsed.out / "kernels.json").write_text(json.dumps(report, indent=1) + "\n")
    if report["ours"]["attention"]:
        try:
            roofline.draw(report, str(parsed.out / "roofline.svg"))
        except ImportError:
            print("no plot: matplotlib is not installed")
    say("done")
    return ours.returncode


if __name__ == "__main__":
    sys.exit(main())
