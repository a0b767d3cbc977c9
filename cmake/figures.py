#!/usr/bin/env python3
"""Writes measured figures into the guides, and checks that they have the form in which it writes them.

    cmake/figures.py write [--bench FOLDER] [--demo FOLDER] PAGE..    # folders with report.md, report.json
    cmake/figures.py check [--bench FOLDER] [--demo FOLDER] PAGE..

Figures stand between markers, as in

    <!-- figures: bench summary -->
    ...
    <!-- end of figures -->

`write` replaces what stands between them by what a report says. `check` wants that every marker is known and
closed, and that every table has the columns and the kind of numbers that `write` gives it. With a report it also
wants the rows that the programs of today print: a table that lacks one of them is stale.
"""

import argparse
import json
import pathlib
import re
import sys

BEGIN = re.compile(r"^<!-- figures: ([a-z -]+) -->$")
END = "<!-- end of figures -->"
NUMBER = r"\*{0,2}[-+]?\d*[.,]?\d[\d.,e+-]*( ± [\d.]+)?( \([A-Za-z]+\))?\*{0,2}"
CELL = re.compile(rf"|yes|\*\*no\*\*|no|[<>]= [\d.]+|n/a|{NUMBER}( / {NUMBER})*")

# The keys of the benchmark's summary that the README shows, and what it calls them.
HEADLINES = {
    "forward_vs_peft_geomean": "forward, time of PEFT's formula in LibTorch over ours",
    "train_vs_peft_geomean":
        "forward and backward, time of PEFT's formula differentiated by LibTorch over ours",
    "forward_vs_best_peer_geomean":
        "forward, time of the best peer that mixes once for each task over ours",
    "overhead_decode": "decoding one row, time of the adapter over the layer's own product",
    "threads2_geomean": "one thread over two, 512 rows or more",
}

# What the pages say of the machine; its report says more, such as what each peer runs on.
MACHINE = ("processor", "cores", "vector registers", "compiler")


class Table:
    """A table of Markdown: the texts of its cells."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows

    def text(self):
        lines = [self.columns, [":---"] + ["---:"] * (len(self.columns) - 1)] + self.rows
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    @staticmethod
    def first_of(lines):
        found = []
        for line in lines:
            if line.startswith("|"):
                found.append([cell.strip() for cell in line.strip()[1:-1].split("|")])
            elif found:
                break
        return Table(found[0], found[2:]) if len(found) > 2 else None


def section_of(report, title):
    lines = report.read_text().split("\n")
    for i, line in enumerate(lines):
        if line == "## " + title:
            return lines[i + 1:]
    raise SystemExit(f"{report} has no section {title!r}")


# One class for each marker: its columns, those of them that are texts, and how a folder's report makes them.

class Block:
    columns, texts = [], ()

    def machine(self, folder):
        return ""

    def table(self, folder):
        raise NotImplementedError


class Bench(Block):
    def machine(self, folder):
        machine = json.loads((folder / "report.json").read_text())["machine"]
        version = (pathlib.Path(__file__).parent.parent / "include/mhr/version.hpp").read_text()
        numbers = re.findall(r"#define MHR_VERSION_\w+ (\d+)", version)
        said = ", ".join(f"{name}: {machine[name]}" for name in MACHINE if name in machine)
        return f"Measured by mhr {'.'.join(numbers)} ({said}).\n\n"


class Headline(Bench):
    columns = ["figure", "value"]

    def table(self, folder):
        summary = json.loads((folder / "report.json").read_text())["summary"]
        return Table(self.columns, [[text, f"{summary[key]:.3g}"] for key, text in HEADLINES.items()
                                    if key in summary])


class Summary(Bench):
    columns = ["key", "value", "target", "met", "at the roofline", "what it is"]
    texts = (5,)

    def table(self, folder):
        return Table.first_of(section_of(folder / "report.md", "Summary"))


class Cases(Bench):
    columns = ["case", "forward: ms", "of the roofline", "best by hand", "PEFT's formula",
               "forward+backward: ms", "of the roofline", "best by hand", "PEFT's formula"]

    def table(self, folder):
        rows = {}
        for row in json.loads((folder / "report.json").read_text())["rows"]:
            if row["type"] != "f32" or row["threads"] != 1:
                continue
            if row["pass"] not in ("forward", "forward+backward"):
                continue
            by_hand = {name: ratio for name, ratio in row["peers"].items()
                       if name in ("Eigen", "OpenBLAS", "oneDNN")}
            best = min(by_hand, key=by_hand.get) if by_hand else ""
            peft = [ratio for name, ratio in row["peers"].items() if "PEFT" in name]
            rows.setdefault(row["case"], {})[row["pass"]] = [
                f"{1e3 * row['seconds']:.3g}", f"{row['roofline_fraction']:.2f}",
                f"{by_hand[best]:.2f} ({best})" if best else "", f"{peft[0]:.1f}" if peft else ""]
        empty = [""] * 4
        return Table(self.columns, [[case] + of.get("forward", empty) + of.get("forward+backward", empty)
                                    for case, of in rows.items()])


class Demo(Block):
    title = ""

    def table(self, folder):
        return Table.first_of(section_of(folder / "report.md", self.title))


class Adaptation(Demo):
    title = "Few-shot adaptation to the test languages"
    columns = ["method", "trained parameters", "32 words", "128 words", "512 words", "seconds"]


class ZeroShot(Demo):
    title = "Zero-shot on the test languages"
    columns = ["method", "bits per character"]


BLOCKS = {"bench headline": Headline(), "bench summary": Summary(), "bench cases": Cases(),
          "demo adaptation": Adaptation(), "demo zero-shot": ZeroShot()}


def blocks_of(page, fail):
    """The lines of a page, and for each marker its name and the places of its first and last line."""
    lines, found, i = page.read_text().split("\n"), [], 0
    while i < len(lines):
        match = BEGIN.match(lines[i])
        if "<!-- figures:" in lines[i] and (not match or match.group(1) not in BLOCKS):
            fail(f"{page}:{i + 1}: no figures are called so; there are {', '.join(BLOCKS)}")
        elif match:
            try:
                end = lines.index(END, i)
            except ValueError:
                fail(f"{page}:{i + 1}: the figures have no end")
                break
            found.append((match.group(1), i, end))
            i = end
        elif lines[i] == END:
            fail(f"{page}:{i + 1}: an end of figures that do not begin")
        i += 1
    return lines, found


def check(page, folders, fail):
    lines, found = blocks_of(page, fail)
    for name, begin, end in found:
        block, place = BLOCKS[name], f"{page}:{begin + 1}: {name}"
        table = Table.first_of(lines[begin + 1:end])
        if table is None:
            fail(f"{place}: no table")
            continue
        if table.columns != block.columns:
            fail(f"{place}: columns {table.columns}, where {block.columns} are written")
            continue
        for row in table.rows:
            if len(row) != len(table.columns):
                fail(f"{place}: a row of {len(row)} cells: {row[0]}")
            for i, cell in enumerate(row[1:], 1):
                if i not in block.texts and not CELL.fullmatch(cell):
                    fail(f"{place}: {row[0]}: {cell!r} is no figure")
        if isinstance(block, Bench) and not any(line.startswith("Measured by mhr ")
                                                for line in lines[begin:end]):
            fail(f"{place}: does not say where it was measured")
        folder = folders[name.split()[0]]
        if folder:
            labels = [row[0].split(":")[0] for row in table.rows]
            for row in block.table(folder).rows:
                if row[0] not in labels:
                    fail(f"{place}: stale, it has no row {row[0]!r}")
    return len(found)


def write(page, folders, fail):
    lines, found = blocks_of(page, fail)
    written = 0
    complete = True
    for name, begin, end in reversed(found):
        folder = folders[name.split()[0]]
        if folder:
            block = BLOCKS[name]
            if block.table(folder).columns != block.columns:
                fail(f"{page}:{begin + 1}: {name}: the report of {folder} is of another size")
                complete = False
                continue
            lines[begin + 1:end] = (block.machine(folder) + block.table(folder).text()).split("\n")
            written += 1
    if complete:
        page.write_text("\n".join(lines))
    return written


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "check"))
    parser.add_argument("--bench", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--demo", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("pages", nargs="+", type=pathlib.Path, metavar="PAGE")
    arguments = parser.parse_args()
    folders = {"bench": arguments.bench, "demo": arguments.demo}
    failures = []
    do = write if arguments.command == "write" else check
    count = sum(do(page, folders, failures.append) for page in arguments.pages)
    for failure in failures:
        print(failure)
    print(f"{count} tables of figures, {len(failures)} failures")
    # Where nothing was found, the markers are called something else by now.
    return 1 if failures or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
