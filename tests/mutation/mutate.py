#!/usr/bin/env python3
"""Do the tests notice a mistake in a kernel? Plants those of mutants.py, one at a time, and looks.

For each mutant, a copy of include/ gets the one change, and the tests that mutants.py names for its
header are compiled against it and run, one after the other; if these pass, the golden cases. What stands
above the kernels runs with kernels that are compiled once, of the headers without a mutant. A mutant is
*killed* when a test fails, crashes or takes too long. One that does not compile is counted apart: it
proves nothing. All tests are seen to pass without a mutant first.

Ends with a table, and with 1 if less than 95 % of the mutants that compile are killed. What survives is
named, with the reason that mutants.py gives if it is no mistake at all.

    tests/mutation/mutate.py --jobs 2                          # all of them
    tests/mutation/mutate.py --only kernels/simd/tiles.hpp     # those of one header, or one: ...tiles.hpp:3
    tests/mutation/mutate.py --jobs 2 --resume                 # but those that an earlier run has done
"""

import argparse
import concurrent.futures
import dataclasses
import json
import queue
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
from mutants import MUTANTS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "include"
TESTS = ROOT / "tests"
# Few combinations, as under sanitizers. Optimised a little: without it some tests take minutes.
FLAGS = ["-std=c++17", "-O1", "-w", "-fopenmp", "-DMHR_TEST_FEW_COMBINATIONS=1", "-DEIGEN_DONT_PARALLELIZE",
         f'-DMHR_GOLDEN_DEFAULT_DIR="{TESTS / "golden"}"', f"-I{TESTS}"]
# What no mutant changes, parsed once.
PRECOMPILED = "#include <doctest/doctest.h>\n#include <Eigen/Core>\n#include <xsimd/xsimd.hpp>\n"
# What the kernels are made of; with a mutant in it, they are compiled with each test.
KERNEL_FOLDERS = ("core", "kernels")
SECONDS_TO_COMPILE = 600
LEAST_SECONDS_TO_RUN = 60
LEAST_SCORE = 0.95
KILLED = ("failed", "crashed", "timed out")


@dataclasses.dataclass
class Mutant:
    """One change of one header: `old` becomes `new`."""
    header: str
    number: int
    tests: list           # their files, in the order in which they are tried
    old: str
    new: str
    nth: int = 0          # of the places that are like `old`; 0: there is one alone
    equivalent: str = ""  # why it is no mistake, if it is none

    @property
    def name(self):
        return f"{self.header}:{self.number}"

    def apply(self, text):
        """The changed header. White space in `old` stands for any."""
        pattern = r"\s+".join(re.escape(word) for word in self.old.split())
        places = list(re.finditer(pattern, text))
        if len(places) < max(self.nth, 1) or (self.nth == 0 and len(places) > 1):
            sys.exit(f"{self.name}: {len(places)} places are like {self.old!r}: mutants.py has to "
                     "follow the header")
        place = places[max(self.nth, 1) - 1]
        return text[:place.start()] + self.new + text[place.end():]


def test_of(name):
    """The file of a test; mutants.py has to name tests that there are."""
    path = TESTS / f"{name}_test.cpp"
    if not path.exists():
        sys.exit(f"mutants.py names {name}: there is no {path}")
    return path


def all_mutants():
    return [Mutant(header, number, [*map(test_of, tests), TESTS / "golden_test.cpp"], old, new,
                   **(options[0] if options else {}))
            for header, (tests, changes) in MUTANTS.items()
            for number, (old, new, *options) in enumerate(changes, 1)]


class Bench:
    """A folder with a copy of include/ and what is compiled against it."""

    def __init__(self, folder, shared):
        self.folder, self.shared = folder, shared
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(INCLUDE, folder / "include")

    def compile(self, test, with_kernels):
        precompiled = ["-include", str(self.shared.precompiled)]
        objects = list(map(str, self.shared.objects.values()))
        if test.name == "golden_test.cpp":  # a program of its own
            precompiled, objects = [], []
        if not with_kernels and test.relative_to(TESTS).parts[0] != "kernels":
            precompiled = [*precompiled, "-DMHR_COMPILED=1"]
            objects += map(str, self.shared.kernels)
        command = [self.shared.compiler, *precompiled, *FLAGS, *self.shared.includes,
                   f"-I{self.folder / 'include'}", str(test), *objects,
                   "-o", str(self.folder / "test")]
        return run(command, SECONDS_TO_COMPILE, self.folder)

    def try_test(self, test, seconds, with_kernels):
        """What becomes of a test: passed, failed, crashed, timed out or `does not compile`."""
        if self.compile(test, with_kernels) != 0:
            return "does not compile"
        options = [] if test.name == "golden_test.cpp" else ["--abort-after=1"]
        status = run([str(self.folder / "test"), *options], seconds, self.folder)
        if status is None:
            return "timed out"
        return "passed" if status == 0 else "failed" if status > 0 else "crashed"


def run(command, seconds, folder):
    """The exit status, or None after so many seconds."""
    with open(folder / "output.txt", "w") as output:
        try:
            return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return None


class Shared:
    """What all benches use: the precompiled header, the objects without the library, the compiled
    kernels, and how long each test takes without a mutant."""

    def __init__(self, folder, compiler, includes):
        self.folder, self.compiler = folder, compiler
        self.includes = [f"-I{path}" for path in includes]
        folder.mkdir(parents=True, exist_ok=True)
        self.precompiled = folder / "precompiled.hpp"
        self.precompiled.write_text(PRECOMPILED)
        self.build(["-x", "c++-header", self.precompiled], folder / "precompiled.hpp.gch")
        self.objects = {}
        support = (path for path in TESTS.glob("support/*.cpp") if not path.name.endswith("_test.cpp"))
        for source in (TESTS / "main.cpp", *support):
            self.objects[source.stem] = folder / f"{source.stem}.o"
            self.build(["-c", source], self.objects[source.stem])
        self.kernels = [folder / "level.o", folder / "kernels.o"]
        for kernel in self.kernels:
            self.build(["-c", INCLUDE / "mhr" / "compiled" / f"{kernel.stem}.cpp"], kernel)
        self.seconds = {}

    def build(self, what, to):
        command = [self.compiler, *FLAGS, *self.includes, f"-I{INCLUDE}", *map(str, what), "-o", str(to)]
        if run(command, SECONDS_TO_COMPILE, self.folder) != 0:
            sys.exit((self.folder / "output.txt").read_text())

    def time_limit(self, test, bench):
        """How long a test may take; it has to pass without a mutant."""
        if test not in self.seconds:
            start = time.monotonic()
            outcome = bench.try_test(test, 10 * SECONDS_TO_COMPILE, False)
            if outcome != "passed":
                raise RuntimeError(f"{test} without a mutant: {outcome}\n"
                                   + (bench.folder / "output.txt").read_text())
            self.seconds[test] = time.monotonic() - start
        return max(LEAST_SECONDS_TO_RUN, 5 * self.seconds[test])


def judge(mutant, bench):
    """Plants one mutant, and tries tests until it is killed."""
    start = time.monotonic()
    header = bench.folder / "include" / "mhr" / mutant.header
    original = header.read_text()
    changed = mutant.apply(original)
    outcome, by = "survived", ""
    for test in mutant.tests:
        limit = bench.shared.time_limit(test, bench)
        header.write_text(changed)
        result = bench.try_test(test, limit, mutant.header.startswith(KERNEL_FOLDERS))
        header.write_text(original)
        if result != "passed":
            outcome, by = result, str(test.relative_to(TESTS))
            break
    return {"outcome": outcome, "by": by, "seconds": round(time.monotonic() - start),
            "old": mutant.old, "new": mutant.new}


def summary(mutants, results):
    """Prints the table; true if enough are killed."""
    columns = ["killed", "survived", "does not compile"]
    counts = {}
    for mutant in mutants:
        outcome = results[mutant.name]["outcome"]
        column = "killed" if outcome in KILLED else outcome
        counts.setdefault(mutant.header, dict.fromkeys(columns, 0))[column] += 1
    print(f"\n{'header':<36}" + "".join(f"{name:>18}" for name in columns))
    for header, row in counts.items():
        print(f"{header:<36}" + "".join(f"{row[name]:>18}" for name in columns))
    total = {name: sum(row[name] for row in counts.values()) for name in columns}
    print(f"{'all':<36}" + "".join(f"{total[name]:>18}" for name in columns))
    for mutant in mutants:
        if results[mutant.name]["outcome"] == "survived":
            print(f"\n{mutant.name} survived: {mutant.old}\n    became {mutant.new}\n    "
                  + (f"equivalent: {mutant.equivalent}" if mutant.equivalent else "NOT EXPLAINED"))
        elif mutant.equivalent:
            print(f"\n{mutant.name} is called equivalent in mutants.py, and was killed")
    compiled = total["killed"] + total["survived"]
    score = total["killed"] / compiled if compiled else 0
    print(f"\n{total['killed']} of {compiled} killed: {100 * score:.1f} %")
    return score >= LEAST_SCORE


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--only", action="append", metavar="NAME",
                        help="a header, as in ia3/ia3.hpp, or a mutant, as in ia3/ia3.hpp:3")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run has found")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutation",
                        help="for what is compiled and found (build/mutation)")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--include", type=Path, action="append", default=[Path("/usr/include/eigen3")],
                        help="where Eigen and others are (/usr/include/eigen3)")
    options = parser.parse_args()

    mutants = [mutant for mutant in all_mutants() if not options.only or any(
        name in (mutant.name, mutant.header) for name in options.only)]
    if not mutants:
        sys.exit("no such mutant")
    for mutant in mutants:
        mutant.apply((INCLUDE / "mhr" / mutant.header).read_text())
        if options.list:
            print(f"{mutant.name}: {mutant.old}\n    becomes {mutant.new}")
    if options.list:
        return 0

    shared = Shared(options.folder, options.compiler, options.include)
    found = options.folder / "results.json"
    results = json.loads(found.read_text()) if options.resume and found.exists() else {}
    todo = [mutant for mutant in mutants if any(
        results.get(mutant.name, {}).get(key) != getattr(mutant, key) for key in ("old", "new"))]
    benches = queue.SimpleQueue()
    for job in range(options.jobs):
        benches.put(Bench(options.folder / f"job{job}", shared))

    def work(mutant):
        bench = benches.get()
        try:
            return mutant, judge(mutant, bench)
        finally:
            benches.put(bench)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for mutant, result in pool.map(work, todo):
            results[mutant.name] = result
            found.write_text(json.dumps(results, indent=1))
            print(f"{result['outcome']:<17} {mutant.name:<36} {result['by']} {result['seconds']} s",
                  flush=True)
    return 0 if summary(mutants, results) else 1


if __name__ == "__main__":
    sys.exit(main())
