#!/usr/bin/env python3
"""Measures what including the library costs a compiler: processor time and the most memory of one
compilation with -O2 (or other flags), the median of several, beside the libraries that a host might
include anyway. Writes a table in Markdown.

    benchmarks/compile_cost.py --output build/bench/compile_cost.md [--compiler c++]
        [--flag=-O2 ...] [--include DIR ...]
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

project = pathlib.Path(__file__).resolve().parent.parent

# What a host writes for one layer: every argument may have any element type.
CALL = """
#include <mhr/lora/routed_lora.hpp>
void forward(const mhr::batch& batch, const mhr::routed_lora& layer, mhr::const_tensor_ref<2> x,
             mhr::tensor_ref<2> y, const mhr::routed_lora_state& state) {
    mhr::routed_lora_forward(batch, layer, x, y, state);
}
void backward(const mhr::batch& batch, const mhr::routed_lora& layer, mhr::const_tensor_ref<2> x,
              mhr::const_tensor_ref<2> d_y, const mhr::routed_lora_state& state,
              const mhr::routed_lora_gradients& gradients, mhr::workspace scratch) {
    mhr::routed_lora_backward(batch, layer, x, d_y, state, gradients, scratch);
}
"""

# What is compiled: a name for the table, and either the text or a file of the project.
CASES = [
    ("nothing", ""),
    ("`<vector>`, `<string>`, `<algorithm>`", "#include <vector>\n#include <string>\n"
                                              "#include <algorithm>\n"),
    ("`<xsimd/xsimd.hpp>`", "#include <xsimd/xsimd.hpp>\n"),
    ("`<Eigen/Dense>`", "#include <Eigen/Dense>\n"),
    ("`<mhr/lora/routed_lora.hpp>`", "#include <mhr/lora/routed_lora.hpp>\n"),
    ("the same with `mhr::compiled`",
     "#define MHR_COMPILED 1\n#include <mhr/lora/routed_lora.hpp>\n"),
    ("calls of routed LoRA, forward and backward", CALL),
    ("these with `MHR_ONLY_F32`", "#define MHR_ONLY_F32 1\n" + CALL),
    ("these with `mhr::compiled`", "#define MHR_COMPILED 1\n" + CALL),
    ("`<mhr/mhr.hpp>`", "#include <mhr/mhr.hpp>\n"),
    ("`<nlohmann/json.hpp>`, which the next one needs", "#include <nlohmann/json.hpp>\n"),
    ("`<mhr/io/peft/peft.hpp>`", "#include <mhr/io/peft/peft.hpp>\n"),
    ("`examples/quickstart.cpp`", project / "examples/quickstart.cpp"),
    ("the quickstart with `mhr::compiled`",
     "#define MHR_COMPILED 1\n" + (project / "examples/quickstart.cpp").read_text()),
]


def compile_once(command):
    """Seconds of processor time and MiB of memory, of the compiler and all that it starts."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--flag", action="append", default=[], help="default: -O2")
    parser.add_argument("--include", action="append", default=[], help="folders of headers")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs: expected 1 or more")

    flags = arguments.flag or ["-O2"]
    version = subprocess.run([arguments.compiler, "--version"], check=True, capture_output=True,
                             text=True).stdout.splitlines()[0]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        sources = []
        for number, (name, content) in enumerate(CASES):
            source = content
            if isinstance(content, str):
                source = folder / f"case{number}.cpp"
                source.write_text(content)
            sources.append((name, source))
        common = [arguments.compiler, "-std=c++17", *flags, f"-I{project / 'include'}"]
        common += [f"-I{directory}" for directory in arguments.include if directory]
        results = [[] for _ in sources]  # two may have one name
        # In turn, so that what else the machine does disturbs all alike.
        for _ in range(arguments.runs):
            for (_, source), runs in zip(sources, results):
                runs.append(compile_once(
                    [*common, "-c", str(source), "-o", str(folder / "object.o")]))
        for (name, _), runs in zip(sources, results):
            seconds, mebibytes = (statistics.median(column) for column in zip(*runs))
            rows.append(f"| {name} | {seconds:.2f} | {mebibytes:.0f} |")

    lines = ["# Cost of compiling one file", "",
             f"{version}; `-std=c++17 {' '.join(flags)}`; median of {arguments.runs}.", "",
             "| file, or what it includes | seconds of processor time | peak MiB |",
             "|:---|---:|---:|", *rows, ""]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
