#!/usr/bin/env python3
"""Checks what the guides promise of the layout of the sources: run by the test `structure`.

    tests/structure/check.py [--root DIR]

Each rule says in one line what broke it. The declarations of functions are found by their text,
comments left out.
"""

import argparse
import json
import pathlib
import re
import sys

# A header includes only its own floor or lower ones.
FLOORS = {
    "core": 0, "kernels": 1, "reference": 1, "compiled": 1, "batch": 2, "routing": 2, "lora": 3,
    "ia3": 3, "dora": 3, "serving": 4, "training": 4, "io": 4, "hosts": 5,
}
# What mhr.hpp includes all of.
UMBRELLA = ("core", "batch", "routing", "lora", "ia3", "dora", "serving",
            "training")
# Headers that no test of their own name belongs to, and why.
UNTESTED = {
    "mhr/compiled/kernel_table.hpp": "a table that the tests with mhr::compiled go through",
    "mhr/kernels/instantiations.hpp": "tested as kernels/kernels.hpp, which it completes",
    "mhr/kernels/row_set.hpp": "two numbers, which every kernel takes",
}
MOST_LINES = 400
MOST_HEADERS = 10
MOST_PARAMETERS = 7
MOST_LINES_OF_README = 200
MOST_PRESETS = 9


class Checker:
    def __init__(self, root):
        self.root = root
        self.include = root / "include"
        self.headers = sorted(p.relative_to(self.include).as_posix()
                              for p in self.include.rglob("*.hpp"))
        self.text = {h: (self.include / h).read_text() for h in self.headers}
        self.failures = []
        self.functions = 0

    def fail(self, message):
        self.failures.append(message)

    def folder_of(self, header):
        parts = header.split("/")
        return parts[1] if len(parts) > 2 else ""

    def check_floors(self):
        for header in self.headers:
            folder = self.folder_of(header)
            if not folder:
                continue
            if folder not in FLOORS:
                self.fail(f"{header}: folder {folder}/ has no floor")
                continue
            for included in re.findall(r"#include <(mhr/[^>]+)>", self.text[header]):
                other = self.folder_of(included)
                if other and FLOORS.get(other, 99) > FLOORS[folder]:
                    self.fail(f"{header} (floor {FLOORS[folder]}) includes <{included}> "
                              f"(floor {FLOORS.get(other)})")
                above = FLOORS[folder] > FLOORS["kernels"]
                if above and other == "kernels" and included != "mhr/kernels/kernels.hpp":
                    self.fail(f"{header} includes <{included}>: only kernels/kernels.hpp is for "
                              "the floors above")
            if "xsimd/" in self.text[header] and folder != "kernels":
                self.fail(f"{header} names xsimd, which only kernels/ does")

    def check_umbrella(self):
        umbrella = self.text["mhr/mhr.hpp"]
        for header in self.headers:
            wanted = self.folder_of(header) in UMBRELLA
            if wanted != (f"#include <{header}>" in umbrella) and header != "mhr/mhr.hpp":
                if self.folder_of(header):
                    self.fail(f"mhr/mhr.hpp {'leaves out' if wanted else 'includes'} <{header}>")

    def check_sizes(self):
        folders = {}
        for header in self.headers:
            lines = self.text[header].count("\n")
            if lines > MOST_LINES:
                self.fail(f"{header} has {lines} lines, more than {MOST_LINES}")
            folders.setdefault(header.rsplit("/", 1)[0], []).append(header)
        for folder, members in folders.items():
            if len(members) > MOST_HEADERS:
                self.fail(f"{folder}/ has {len(members)} headers, more than {MOST_HEADERS}")

    def check_tests(self):
        for header in self.headers:
            if not self.folder_of(header) or header in UNTESTED:
                continue
            test = self.root / "tests" / (header[len("mhr/"):-len(".hpp")] + "_test.cpp")
            if not test.exists():
                self.fail(f"{header} has no {test.relative_to(self.root)}")
        listed = re.findall(r"^ *([a-z0-9_/]+_test\.cpp)\)?$",
                            (self.root / "tests" / "CMakeLists.txt").read_text(), re.M)
        for source in sorted((self.root / "tests").rglob("*_test.cpp")):
            name = source.relative_to(self.root / "tests").as_posix()
            own = re.match(r"(consumer|dispatch|fuzz|hosts|no_exceptions)/|golden_test", name)
            if not own and name not in listed:
                self.fail(f"tests/CMakeLists.txt does not list {name}")
        for name in listed:
            if not (self.root / "tests" / name).exists():
                self.fail(f"tests/CMakeLists.txt lists {name}, which is not there")

    def declarations(self, header):
        """Names, parameters and places of the public functions of a header."""
        text = re.sub(r"//[^\n]*", "", self.text[header])
        # What is private to a header stands in a namespace whose name ends so.
        while True:
            match = re.search(r"namespace \w*(details|detail) \{", text)
            if not match:
                break
            depth, end = 1, match.end()
            while depth and end < len(text):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            text = text[:match.start()] + text[end:]
        pattern = (r"\n(?:template <[^\n]*>\n)?(?:inline |constexpr |static |MHR_INLINE "
                   r"|\[\[nodiscard\]\] )*[A-Za-z_][\w:<>,\s\*&]*?\b([a-z_]\w*)\(")
        for match in re.finditer(pattern, text):
            depth, angle, end, start = 1, 0, match.end(), match.end()
            parameters = []
            while depth and end < len(text):
                c = text[end]
                depth += {"(": 1, ")": -1}.get(c, 0)
                angle += {"<": 1, ">": -1, "[": 1, "]": -1, "{": 1, "}": -1}.get(c, 0)
                if (c == "," and depth == 1 and angle == 0) or depth == 0:
                    parameters.append(" ".join(text[start:end].split()))
                    start = end + 1
                end += 1
            rest = text[end:end + 40].lstrip()
            if re.match(r"\{|;|noexcept|const", rest):
                yield match.group(1), [p for p in parameters if p]

    def check_functions(self):
        every_kernel = "".join((self.root / "tests" / "support").joinpath(name).read_text()
                               for name in ("every_kernel.hpp",))
        for header in self.headers:
            folder = self.folder_of(header)
            if folder in ("", "kernels", "reference", "compiled"):
                continue
            for name, parameters in self.declarations(header):
                self.functions += 1
                if len(parameters) > MOST_PARAMETERS:
                    self.fail(f"{header}: {name} has {len(parameters)} parameters")
                takes_work = any(re.match(r"(const )?(executor_ref|batch)\b", p)
                                 for p in parameters)
                runs = takes_work and re.search(r"_(forward|backward)$", name)
                if folder not in ("core", "hosts", "io") and (
                        runs or any(p.startswith("executor_ref") for p in parameters)):
                    if not re.search(rf"[^a-z0-9_]{name}\(", every_kernel):
                        self.fail(f"tests/support/every_kernel.hpp leaves out {name} of {header}")
        if self.functions < 50:
            self.fail(f"only {self.functions} public functions were found")

    def check_guides(self):
        pages = [self.root / "README.md"]
        for folder in ("benchmarks", "cmake", "examples", "include", "tests"):
            pages += sorted((self.root / folder).rglob("README.md"))
        lines = pages[0].read_text().count("\n")
        if lines > MOST_LINES_OF_README:
            self.fail(f"README.md has {lines} lines, more than {MOST_LINES_OF_README}")
        links = 0
        for page in pages:
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
                if "://" in link:
                    continue
                links += 1
                if not (page.parent / link).exists():
                    self.fail(f"{page.relative_to(self.root)}: {link} is not there")
        if links < 10:
            self.fail(f"only {links} links were found in the guides")
        presets = json.loads((self.root / "CMakePresets.json").read_text())["configurePresets"]
        visible = [preset["name"] for preset in presets if not preset.get("hidden")]
        if len(visible) > MOST_PRESETS:
            self.fail(f"{len(visible)} presets, more than {MOST_PRESETS}: {', '.join(visible)}")

    def check_namespaces(self):
        for header in self.headers:
            text = self.text[header]
            if re.search(r"^namespace mhr::", text, re.M):
                self.fail(f"{header}: write `namespace mhr {{` and the inline namespace")
            if re.search(r"\bnamespace detail \{", text):
                self.fail(f"{header}: a namespace `detail` that is shared; name it after its header")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent.parent)
    checker = Checker(parser.parse_args().root)
    rules = [checker.check_floors, checker.check_umbrella, checker.check_sizes,
             checker.check_tests, checker.check_functions, checker.check_guides,
             checker.check_namespaces]
    for rule in rules:
        rule()
    for failure in checker.failures:
        print(failure)
    print(f"{len(checker.headers)} headers, {checker.functions} public functions, "
          f"{len(checker.failures)} failures")
    return 1 if checker.failures or not checker.headers else 0


if __name__ == "__main__":
    sys.exit(main())
