"""The table and the plot of `engine.py`'s results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from counts import Counts
from peers import (
    CHANNELS_LAST,
    COMFYUI,
    COMFYUI_TILED,
    DIFFUSERS,
    DIFFUSERS_TILED,
    OURS,
    OURS_BUDGET,
    OURS_TILED,
    PLAIN,
)
from runtimes import RUNTIMES

BEGIN, END = "<!-- begin: written by benchmarks/engine.py -->", "<!-- end -->"
# The column of each system. A row is either tiled or not, and says so.
COLUMNS = {
    "reference path": (PLAIN,),
    "diffusers": (DIFFUSERS,),
    "diffusers, channels_last": (CHANNELS_LAST, DIFFUSERS_TILED),
    "ComfyUI": (COMFYUI, COMFYUI_TILED),
}
OWN = (OURS, OURS_TILED, OURS_BUDGET)
MEMORY_SIZE = "1024"
# Colour and line of each system in the plot.
STYLES = {
    OURS: ("#c0392b", "-"),
    OURS_BUDGET: ("#c0392b", "--"),
    DIFFUSERS: ("#2c5f8a", "-"),
    CHANNELS_LAST: ("#5fa3d6", "-"),
    DIFFUSERS_TILED: ("#5fa3d6", "--"),
    COMFYUI: ("#3d8b4f", "-"),
    COMFYUI_TILED: ("#3d8b4f", "--"),
}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def against_peers(rows: list[Mapping[str, Any]]) -> str:
    """Rows whose others are other systems: a column each, with its time in ours; and the fastest's."""
    lines = []
    for row in rows:
        seconds = row["seconds"]
        mine = seconds[row["ours"]]
        cells = []
        for column in COLUMNS.values():
            times = [seconds[name] for name in column if name in seconds]
            cells.append(f"{duration(times[0])} ({times[0] / mine:.2f})" if times else "")
        fastest = min((value for name, value in seconds.items() if name != row["ours"]), default=None)
        ratio = f"**{fastest / mine:.2f}**" if fastest else ""
        lines.append([row["title"], duration(mine), *cells, ratio, str(row["turns"])])
    return table(["case", OURS, *COLUMNS, "times faster than the fastest other", "turns"], lines)


def errors_of_peers(rows: list[Mapping[str, Any]]) -> str:
    """Of such rows, where they were measured: errors against float64, root mean square and largest."""
    lines = []
    for row in rows:
        errors = row["errors"]
        pairs = [next((errors[name] for name in names if name in errors), None) for names in (OWN, *COLUMNS.values())]
        lines.append([row["title"], *("" if each is None else "{:.1e}, {:.1e}".format(*each) for each in pairs)])
    return table(["error: RMS, largest", OURS, *COLUMNS], lines)


def beside_runtimes(rows: list[Mapping[str, Any]]) -> str:
    """Rows with other runtimes: a line for each system, with errors and peak memory where they were measured."""
    lines = []
    for row in rows:
        mine = row["seconds"][row["ours"]]
        for system, seconds in row["seconds"].items():
            found = [f"{error:.1e}" for error in row.get("errors", {}).get(system, ())] or ["", ""]
            peak = row.get("bytes", {}).get(system)
            memory = "" if peak is None else f"{peak / 2**20:.0f} MiB"
            lines.append([row["title"], system, f"{duration(seconds)} ({seconds / mine:.2f})", *found, memory])
    return table(["case", "system", "time (of ours)", "RMS error", "largest error", "peak memory growth"], lines)


def counted(counts: Mapping[str, Counts]) -> str:
    """What runs compute and move, by their plans."""
    lines = [
        [
            case,
            f"{each.plain / 1e9:.0f}",
            f"{each.multiplications / 1e9:.0f}",
            *(f"{size / 2**20:.0f} MiB" for size in (each.moved, each.spilled, each.peak)),
        ]
        for case, each in counts.items()
    ]
    header = ["case", "10^9 multiplications, plain", "here", "maps read and written", "on disk at most", "peak by plan"]
    return table(header, lines)


def against_ourselves(rows: list[Mapping[str, Any]]) -> str:
    """Rows that compare two ways of our own: the ratio of their times, and the difference of their results."""
    lines = []
    for row in rows:
        (other, seconds), mine = next(i for i in row["seconds"].items() if i[0] != row["ours"]), row["seconds"]
        lines.append(
            [
                row["title"],
                f"{duration(mine[row['ours']])} / {duration(seconds)}",
                f"**{mine[row['ours']] / seconds:.2f}**",
                f"{row['difference'][other]:.0e}",
                str(row["turns"]),
            ]
        )
    return table(["case", "times", "ratio", "largest difference", "turns"], lines)


def memory(sizes: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Peak memory growth at one size, beside that of diffusers untiled."""
    points = {system: at[MEMORY_SIZE] for system, at in sizes.items() if MEMORY_SIZE in at}
    reference = points.get(DIFFUSERS)
    lines = [
        [
            system,
            f"{grown / 2**20:.0f} MiB",
            f"{grown / reference[1]:.2f}" if reference else "",
            duration(seconds),
        ]
        for system, (seconds, grown) in points.items()
    ]
    return table(["decode 1024x1024", "peak memory growth", "of diffusers'", "time"], lines)


def text(results: Mapping[str, Any], counts: Mapping[str, Counts] | None = None) -> str:
    """All tables: first what no machine changes, then the machine, and what was measured on it."""
    ordered = [results["rows"][name] for name in results["order"] if name in results["rows"]]
    own = [row for row in ordered if set(row["seconds"]) <= set(OWN) and len(row["seconds"]) > 1]
    runtimes = [row for row in ordered if any(system in RUNTIMES for system in row["seconds"])]
    peers = [row for row in ordered if row not in own and row not in runtimes]
    parts = [counted(counts)] if counts else []
    parts += ["Measured on: " + "; ".join(f"{name} {value}" for name, value in results["machine"].items()) + "."]
    if peers:
        parts.append(against_peers(peers))
    if compared := [row for row in peers if "errors" in row]:
        parts.append(errors_of_peers(compared))
    if runtimes:
        parts.append(beside_runtimes(runtimes))
    if own:
        parts.append(against_ourselves(own))
    if any(MEMORY_SIZE in at for at in results["sizes"].values()):
        parts.append(memory(results["sizes"]))
    return "\n\n".join(parts)


def replace_between(document: str, part: str) -> str:
    """The document with what is between the two markers replaced; they are added at its end if it has none."""
    if BEGIN not in document:
        return f"{document.rstrip()}\n\n{BEGIN}\n\n{part}\n\n{END}\n".lstrip()
    before, rest = document.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{rest.split(END, 1)[1]}"


def write_table(results: Mapping[str, Any], path: Path, counts: Mapping[str, Counts] | None = None) -> None:
    """Put the tables between the markers of a Markdown file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(replace_between(document, text(results, counts)), encoding="utf-8")


def write_plot(sizes: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Time and peak memory against the image's side, log-log."""
    if not sizes:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), dpi=130)
    for axis, index, unit, label in ((axes[0], 0, 1.0, "seconds"), (axes[1], 1, 2**20, "peak memory growth, MiB")):
        for system, (colour, line) in STYLES.items():
            points = sorted((int(size), values[index] / unit) for size, values in sizes.get(system, {}).items())
            if points:
                axis.plot(*zip(*points, strict=True), line, color=colour, marker="o", markersize=4, label=system)
        sides = sorted({int(size) for points in sizes.values() for size in points})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sides, [str(side) for side in sides])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("side of the image, pixels")
        axis.set_ylabel(label)
        axis.grid(True, which="both", alpha=0.2)
    axes[0].set_title("time to decode")
    axes[1].set_title("memory beside weights and latent")
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
