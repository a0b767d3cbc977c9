#!/usr/bin/env python3
"""Draws tokens per second against the number of distinct adapters, a panel for each kind of adapters,
from the report.json that mhr_serve_bench leaves.

    benchmarks/serving/picture.py build/bench/report.json build/bench/serving.svg
"""

import argparse
import json
import math
import pathlib
from xml.sax.saxutils import escape

PANEL_WIDTH, PANEL_HEIGHT = 330, 250
LEFT, TOP, RIGHT, BOTTOM, GAP = 64, 84, 24, 58, 52

# What follows from nothing else: ours in front, the host's own as a line to compare with.
STYLES = {
    "base only": ("#8a8f98", "5 4"),
    "mhr": ("#0b63ce", ""),
    "switching": ("#d9480f", ""),
    "PEFT mixed batch": ("#2b8a3e", ""),
    "vLLM's formula": ("#862e9c", ""),
    "PEFT's formula": ("#2b8a3e", ""),
}


def text(x, y, content, size=12, anchor="start", colour="#333", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{colour}" font-weight="{weight}">{escape(content)}</text>')


def line(x0, y0, x1, y1, colour="#e3e6ea"):
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}"/>'


def round_step(largest, parts):
    """A step of 1, 2 or 5 times a power of ten that cuts a range into about so many parts."""
    rough = largest / parts
    power = 10 ** math.floor(math.log10(rough))
    return min((s * power for s in (1, 2, 5, 10)), key=lambda step: abs(step - rough))


def draw_panel(left, title, rows, largest, first):
    """One kind of adapters. Panels share the scale of tokens per second."""
    bottom = TOP + PANEL_HEIGHT
    counts = [row["distinct"] for row in rows]
    span = max(math.log2(max(counts) / min(counts)), 1)

    def x_of(count):
        return left + PANEL_WIDTH * math.log2(count / min(counts)) / span

    def y_of(tokens):
        return bottom - PANEL_HEIGHT * tokens / largest

    parts = [text(left, TOP - 14, title, 13, weight="bold")]
    step = round_step(largest, 5)
    for number in range(int(largest / step) + 1):
        y = y_of(number * step)
        parts.append(line(left, y, left + PANEL_WIDTH, y))
        if first:
            parts.append(text(left - 8, y + 4, f"{number * step:g}", 11, "end", "#666"))
    for count in counts:
        parts.append(line(x_of(count), bottom, x_of(count), bottom + 4, "#aab"))
        parts.append(text(x_of(count), bottom + 18, str(count), 11, "middle", "#666"))
    for name, (colour, dashes) in STYLES.items():
        points = [(x_of(row["distinct"]), y_of(row["tokens_per_second"][name]))
                  for row in rows if name in row["tokens_per_second"]]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        width = 3 if name == "mhr" else 2
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                     f'stroke-width="{width}" stroke-linejoin="round"{dash}/>')
        if not dashes:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{width}" fill="{colour}"/>'
                      for x, y in points]
    return parts


def draw_legend(names, left, y):
    parts = []
    for name in names:
        colour, dashes = STYLES[name]
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(f'<line x1="{left}" y1="{y - 4}" x2="{left + 26}" y2="{y - 4}" '
                     f'stroke="{colour}" stroke-width="{3 if name == "mhr" else 2}"{dash}/>')
        parts.append(text(left + 32, y, name, 12))
        left += 32 + 7 * len(name) + 26
    return parts


def draw(report):
    serving = report["serving"]
    model, rows = serving["model"], serving["rows"]
    kinds = [kind for kind in serving["kinds"] if any(row["kind"] == kind for row in rows)]
    kinds.sort(key=[row["kind"] for row in rows].index)
    largest = 1.08 * max(max(row["tokens_per_second"].values()) for row in rows)
    width = LEFT + len(kinds) * (PANEL_WIDTH + GAP) - GAP + RIGHT
    height = TOP + PANEL_HEIGHT + BOTTOM
    names = [name for name in STYLES
             if any(name in row["tokens_per_second"] for row in rows)]
    requests = rows[0]["rows"]
    title = (f"Tokens per second of {requests} requests: {model['blocks']} blocks of width "
             f"{model['width']}, f32 base weights, {model['threads']} threads")
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             f'width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             text(LEFT, 24, title, 15, weight="bold"), *draw_legend(names, LEFT, 48)]
    for number, kind in enumerate(kinds):
        left = LEFT + number * (PANEL_WIDTH + GAP)
        parts += draw_panel(left, serving["kinds"][kind],
                            sorted((row for row in rows if row["kind"] == kind),
                                   key=lambda row: row["distinct"]), largest, number == 0)
    middle = LEFT + (width - LEFT - RIGHT) / 2
    parts.append(text(middle, height - 14, "distinct adapters in the batch", 12, "middle"))
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.picture.write_text(draw(json.loads(arguments.report.read_text())))


if __name__ == "__main__":
    main()
