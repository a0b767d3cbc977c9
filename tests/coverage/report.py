#!/usr/bin/env python3
"""Which lines and branches of include/mhr the tests of a build with MHR_COVERAGE have reached.

    tests/coverage/report.py build/cmake/coverage --output build/coverage

writes pages (index.html, by gcovr) and what was not reached (missing.txt), and ends with 1 below 97 % of
the lines or 90 % of the branches.

It counts some lines and branches, and leaves out others:

- A line of a template is reached if one of its instantiations reaches it. One without any cannot be
  seen by a compiler: a header of which nothing is seen is named below the table.
- Left out: the headers of hosts whose library the build has not found (MHR_HOSTS; the preset has those
  that need nothing but Debian's small packages), and code that the preprocessor drops, as that for
  other processors.
- Branches of instantiations are taken together where they are alike, and counted apart where
  `if constexpr` makes them differ. (Of lambdas in templates gcov gives all instantiations in one list,
  which is cut by the number of conditions in the line.)
- Every call that may throw is a branch to a compiler. Neither side is counted: that an allocation
  fails in each of some thousand places is not tried, and that it mostly does not fail would be counted
  as thousands of branches reached. (gcovr can drop one side alone, --exclude-throw-branches, so that
  its own number is too good: the pages show it, and this script does not use it.) Errors that the
  library raises itself are `if`s, and counted.
- Branches of lines that have no condition of ours (a closing brace, a list of values): clean-ups and
  loops that the compiler puts there.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "include" / "mhr"
LEAST = {"lines": 97, "branches": 90}
CONDITION = re.compile(r"\b(if|for|while|switch|case)\b|\?|&&|\|\|")


def without_calls(branches):
    """The taken counts of a line's branches, without the pairs that a call which may throw makes."""
    counts = []
    for i, branch in enumerate(branches):
        beside = branches[i + 1] if branch["fallthrough"] and i + 1 < len(branches) else None
        if not branch["throw"] and not (beside and beside["throw"]):
            counts.append(branch["count"])
    return tuple(counts)


def conditions(text):
    """How many conditions a line of code has, about."""
    text = re.sub(r'"[^"]*"|//.*', "", text)
    joints = len(re.findall(r"&&|\|\|", text))
    return joints + max(1, len(re.findall(r"\?|\b(?:if|for|while)\b(?!\s+constexpr)", text)))


def cut(counts, text):
    """The counts of all instantiations of a lambda, taken together (or as they are, if there is no
    telling where one ends)."""
    size = 2 * conditions(text)
    if len(counts) % size != 0:
        return counts
    return tuple(sum(counts[i::size]) for i in range(size if counts else 0))


def gather(data_files):
    """For each header and line: how often it was reached, and the counts of its branches by form."""
    texts = {str(path.relative_to(INCLUDE)): path.read_text().splitlines()
             for path in INCLUDE.rglob("*.hpp")}
    lines = collections.defaultdict(collections.Counter)
    branches = collections.defaultdict(lambda: collections.defaultdict(dict))
    for data in data_files:
        output = subprocess.run(["gcov", "--json-format", "--branch-probabilities", "--stdout", data],
                                check=True, capture_output=True, cwd=Path(data).parent).stdout
        for document in output.splitlines():
            record = json.loads(document)
            for file in record["files"]:
                path = (Path(record["current_working_directory"]) / file["file"]).resolve()
                if INCLUDE not in path.parents:
                    continue
                header = str(path.relative_to(INCLUDE))
                for line in file["lines"]:
                    number = line["line_number"]
                    lines[header][number] += line["count"]
                    counts = without_calls(line["branches"])
                    if "function_name" not in line:
                        counts = cut(counts, texts[header][number - 1])
                    if counts:
                        form = branches[header][number]
                        before = form.get(len(counts), (0,) * len(counts))
                        form[len(counts)] = tuple(map(sum, zip(before, counts)))
    return texts, lines, branches


def share(reached, of):
    return 100 * reached / of if of else 100.0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="whose tests have run")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "coverage")
    parser.add_argument("--no-pages", action="store_true", help="do without gcovr")
    options = parser.parse_args()
    data = sorted(str(path.resolve()) for path in options.build.rglob("*.gcda"))
    if not data:
        sys.exit(f"no test has run in {options.build}")
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.no_pages:
        subprocess.run(["gcovr", "--root", str(ROOT), "--filter", f"{INCLUDE}/",
                        "--exclude-throw-branches", "--exclude-unreachable-branches",
                        "--html-details", str(options.output / "index.html"),
                        str(options.build)], check=True)

    texts, lines, branches = gather(data)
    missing = []
    totals = collections.Counter()
    print(f"{'header':<40}{'lines':>16}{'branches':>18}")
    for header in sorted(lines):
        text = texts[header]
        row = collections.Counter()
        for number, count in sorted(lines[header].items()):
            row["lines"] += 1
            row["lines reached"] += count > 0
            if count == 0:
                missing.append(f"{header}:{number}: {text[number - 1]}")
        for number, forms in sorted(branches[header].items()):
            if not CONDITION.search(text[number - 1]):
                continue
            for counts in forms.values():
                taken = sum(count > 0 for count in counts)
                row["branches"] += len(counts)
                row["branches reached"] += taken
                if taken < len(counts) and lines[header][number] > 0:
                    missing.append(f"{header}:{number}: {taken} of {len(counts)} branches: "
                                   f"{text[number - 1]}")
        totals += row
        print(f"{header:<40}" + "".join(
            f"{row[f'{kind} reached']:>{width}}/{row[kind]:<4}{share(row[f'{kind} reached'], row[kind]):>6.1f}"
            for kind, width in (("lines", 5), ("branches", 7))))
    (options.output / "missing.txt").write_text("\n".join(missing) + "\n")

    unseen = sorted(header for header in texts if header not in lines)
    print(f"\nwithout code, or not built: {', '.join(unseen)}")
    good = True
    for kind, least in LEAST.items():
        reached = share(totals[f"{kind} reached"], totals[kind])
        good = good and reached >= least
        print(f"{kind}: {totals[f'{kind} reached']} of {totals[kind]}, {reached:.1f} % "
              f"(at least {least} %)")
    print(f"what is missing: {options.output / 'missing.txt'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
