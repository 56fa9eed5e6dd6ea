"""The roofline of decode attention: what was reached, over the operations a cached byte takes."""

MARKERS = {"16": "x", "4": "s", "2": "o"}
INTENSITIES = [2, 4, 8, 16, 32, 64]


def bits_of(preset: str) -> str:
    """Bits of a code of a preset, as text: "pkv4" 4, "default" 2, "fp16" 16."""
    name = preset.split("-")[0]
    return "16" if name == "fp16" else "4" if name.endswith("4") else "2"


def draw(report: dict, path: str) -> None:
    """Writes the plot; raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a tenth of the bytes
    rows = report["ours"]["attention"]
    ceiling = report["ours"].get("ceilings", {}).get("read_bytes_per_s")
    figure, (rate, bandwidth) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for preset in dict.fromkeys(row["preset"] for row in rows):
        mine = [row for row in rows if row["preset"] == preset]
        intensity = [row["operations"] / row["bytes"]["own"] for row in mine]
        marker = MARKERS[bits_of(preset)]
        rate.plot(
            intensity, [r["operations_per_s"] / 1e12 for r in mine], marker, label=preset, ms=5
        )
        bandwidth.plot(intensity, [r["bytes_per_s"] / 1e12 for r in mine], marker, ms=5)
    first = (rows[0]["preset"], rows[0]["data"])
    peers = [row for row in report.get("ratios", []) if (row["preset"], row["data"]) == first]
    if peers:
        intensity = [row["peer_operations_per_byte"] for row in peers]
        moved = [row["peer_bytes_per_s"] / 1e12 for row in peers]
        rate.plot(intensity, [i * b for i, b in zip(intensity, moved)], "k+", label="fp16 peer")
        bandwidth.plot(intensity, moved, "k+")
    if ceiling:
        ends = [INTENSITIES[0], INTENSITIES[-1]]
        rate.plot(ends, [x * ceiling / 1e12 for x in ends], "k--", lw=1, label="read ceiling")
        bandwidth.axhline(ceiling / 1e12, color="k", ls="--", lw=1)
    for axes, label in ((rate, "TFLOP/s"), (bandwidth, "TB/s of cached bytes")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(INTENSITIES, [str(x) for x in INTENSITIES])
        axes.minorticks_off()
        axes.set_xlabel("operations a cached byte")
        axes.set_ylabel(label)
        axes.grid(True, lw=0.3)
    rate.set_yscale("log")
    rate.minorticks_off()
    rate.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
