#!/usr/bin/env python3
"""Compares two builds of mhr_compare, by two compilers or of two versions: case by case in turn, so
that what else the machine does disturbs both alike. Writes a table of the second's times over the
first's.

    benchmarks/two_builds.py GCC=build/gcc/benchmarks/mhr_compare Clang=build/clang/benchmarks/mhr_compare
        [--case batch ...] [--rounds 3] [--seconds 1] [--output build/bench/two_builds.md]
"""

import argparse
import collections
import json
import math
import pathlib
import statistics
import subprocess
import tempfile

CASES = ["decode-1", "decode-32", "decode-32-routed", "prefill", "batch", "paper-t5xl", "wide-rank",
         "ffn", "small"]


def run(program, case, seconds, folder):
    """Seconds of each cell of a case: by pass, type and threads."""
    subprocess.run([program, "--case", case, "--peers", "none", "--seconds", str(seconds),
                    "--output", folder], check=True, capture_output=True)
    report = json.loads((pathlib.Path(folder) / "report.json").read_text())
    return {(case, row["pass"], row["type"], row["threads"]): row["seconds"]
            for row in report["rows"]}


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(value) for value in values))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs=2, metavar="NAME=PROGRAM")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="of one case in one type, a round")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: expected 1 or more")
    (first, first_program), (second, second_program) = (b.split("=", 1) for b in arguments.builds)

    times = {first: collections.defaultdict(list), second: collections.defaultdict(list)}
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.case or CASES:
            for number in range(arguments.rounds):
                # Who begins changes: the first one finds the processor colder.
                turn = [(first, first_program), (second, second_program)]
                for name, program in turn if number % 2 == 0 else reversed(turn):
                    for cell, seconds in run(program, case, arguments.seconds, folder).items():
                        times[name][cell].append(seconds)

    ratios = {cell: statistics.median(times[second][cell]) / statistics.median(times[first][cell])
              for cell in times[first]}
    worst = max(ratios, key=ratios.get)
    lines = [f"# {second} against {first}", "",
             f"Time of {second} over that of {first}, medians of {arguments.rounds} rounds in turn: "
             f"geometric mean {geometric_mean(ratios.values()):.3f}, "
             f"worst {ratios[worst]:.3f} ({', '.join(map(str, worst))}).", "",
             "| case | pass | type | threads | ms | ratio |", "|:---|:---|:---|---:|---:|---:|"]
    for cell, ratio in ratios.items():
        milliseconds = 1e3 * statistics.median(times[first][cell])
        lines.append(f"| {' | '.join(map(str, cell))} | {milliseconds:.4f} | {ratio:.3f} |")
    text = "\n".join([*lines, ""])
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
