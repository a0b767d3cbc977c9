#!/usr/bin/env python3
"""Writes the library as one header, for projects that would rather copy a file than a folder.

    cmake/single_header.py --output mhr/mhr.hpp
    cmake/single_header.py --output mhr/mhr.hpp mhr/io/peft/peft.hpp mhr/hosts/eigen.hpp

It holds mhr/mhr.hpp, and whichever further headers are named, with all that they include of the
library; the standard library, xsimd and a host's own headers are still included. It is for
`#include <mhr/mhr.hpp>`, in the place of the folder: never beside it in one program. It has the
kernels in it, so that it is not for programs that link mhr::compiled.
"""

import argparse
import pathlib
import re
import sys

INCLUDE = re.compile(r"#\s*include\s*([<\"][^>\"]+[>\"])")
CONDITION = re.compile(r"#\s*(if|ifdef|ifndef|endif)\b")
# Always true here: what stands inside is written as if it stood outside.
HEADER_ONLY = "#if !MHR_COMPILED"


class SingleHeader:
    def __init__(self, root):
        self.root = root
        self.included = set()
        self.current = None  # whose lines are being written
        self.lines = []

    def write(self, name, line):
        if line and name != self.current:
            self.lines += ["", f"// ---- {name} ----", ""]
            self.current = name
        self.lines.append(line)

    def add(self, name):
        """Writes a header, and where it includes others of the library these, as a compiler would."""
        self.included.add(name)
        conditions = []  # what stands inside is included only where they hold
        for number, line in enumerate((self.root / name).read_text().splitlines(), 1):
            condition = CONDITION.match(line)
            if condition and condition[1] != "endif":
                conditions.append(line)
                if line == HEADER_ONLY:
                    continue
            elif condition and conditions.pop() == HEADER_ONLY:
                continue
            depth = sum(line != HEADER_ONLY for line in conditions)
            include = INCLUDE.match(line)
            if not include:
                if line != "#pragma once":
                    self.write(name, line)
                continue
            if not include[1].startswith("<"):
                sys.exit(f"{name}:{number}: expected #include <...>, got {include[1]}")
            included = include[1].strip("<>")
            ours = included.startswith("mhr/")
            if ours and depth:
                sys.exit(f"{name}:{number}: a header of the library inside a condition")
            if included in self.included:
                continue
            if ours:
                self.add(included)
                continue
            if not depth:
                self.included.add(included)
            self.write(name, line)

    def text(self, licence, version):
        head = ["#pragma once", "",
                f"// mhr {version} in one header, made by cmake/single_header.py: do not edit.", "//"]
        head += [f"// {line}".rstrip() for line in licence.splitlines()]
        head += ["", "#if defined(MHR_COMPILED) && MHR_COMPILED",
                 '#error "mhr: the one header has the kernels, and so is not for mhr::compiled"', "#endif"]
        lines = []
        for line in head + self.lines:  # what was left out leaves no gaps
            if line or (lines and lines[-1]):
                lines.append(line)
        return "\n".join(lines) + "\n"


def main():
    project = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("headers", nargs="*", metavar="HEADER",
                        help="as they are included, to be added to mhr/mhr.hpp")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    arguments = parser.parse_args()

    root = project / "include"
    for name in arguments.headers:
        if not (root / name).is_file():
            sys.exit(f"{name}: not a header of the library")
    header = SingleHeader(root)
    for name in ["mhr/mhr.hpp", *arguments.headers]:
        if name not in header.included:
            header.add(name)
    version = re.findall(r"#define MHR_VERSION_\w+ (\d+)", (root / "mhr/version.hpp").read_text())
    text = header.text((project / "LICENSE").read_text(), ".".join(version))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text)


if __name__ == "__main__":
    main()
