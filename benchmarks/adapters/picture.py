#!/usr/bin/env python3
"""Runs mhr_adapters and draws what it prints: tokens per second against distinct adapters, as SVG.

    benchmarks/adapters/picture.py build/cmake/bench/benchmarks/mhr_adapters adapters.svg

The numbers are left beside the picture, in adapters.tsv.
"""

import math
import pathlib
import subprocess
import sys

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 220, 50, 55
COLOURS = ["#7f7f7f", "#0b6fb8", "#d97706", "#b02a37"]


def nice_ticks(largest):
    step = 10 ** math.floor(math.log10(largest))
    while largest / step < 4:
        step /= 2
    return [step * i for i in range(int(largest / step) + 2)]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    picture = pathlib.Path(sys.argv[2])
    text = subprocess.run([sys.argv[1]], stdout=subprocess.PIPE, text=True, check=True).stdout
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.with_suffix(".tsv").write_text(text)
    lines = [line.split("\t") for line in text.splitlines()]
    names, counts = lines[0][1:], [int(line[0]) for line in lines[1:]]
    series = [[float(line[i + 1]) for line in lines[1:]] for i in range(len(names))]
    ticks = nice_ticks(max(map(max, series)))
    span = math.log2(counts[-1]) or 1

    def x(count):
        return LEFT + math.log2(count) / span * (WIDTH - LEFT - RIGHT)

    def y(value):
        return HEIGHT - BOTTOM - value / ticks[-1] * (HEIGHT - TOP - BOTTOM)

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="24" font-size="15">Tokens per second of one adapted layer, 64 '
           'requests of one token each</text>']
    for tick in ticks:
        svg.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
                   'stroke="#dddddd"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,.0f}</text>')
    for count in counts:
        svg.append(f'<text x="{x(count):.1f}" y="{HEIGHT - BOTTOM + 20}" '
                   f'text-anchor="middle">{count}</text>')
    svg.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" '
               'text-anchor="middle">distinct adapters in the batch</text>')
    # Names stand beside the ends of their lines, moved apart where these meet.
    places = sorted(range(len(names)), key=lambda i: y(series[i][-1]))
    last = -math.inf
    for i in places:
        points = " ".join(f"{x(c):.1f},{y(v):.1f}" for c, v in zip(counts, series[i]))
        colour = COLOURS[i % len(COLOURS)]
        dashes = ' stroke-dasharray="5 4"' if i == 0 else ""
        svg.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                   f'stroke-width="2.5"{dashes}/>')
        last = max(last + 18, y(series[i][-1]) + 4)
        svg.append(f'<text x="{WIDTH - RIGHT + 10}" y="{last:.1f}" fill="{colour}">{names[i]}</text>')
    svg.append("</svg>")
    picture.write_text("\n".join(svg) + "\n")


if __name__ == "__main__":
    main()
