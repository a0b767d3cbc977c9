#!/usr/bin/env python3
"""Checks the machine code of the hot loops, which needs no processor that runs it: compiles
kernels.cpp for an instruction set, disassembles it, and looks at the innermost loops that multiply
and add in vectors. In each of them
  - no vector is stored to the stack: the sums of a tile fit the registers;
  - there are at most 1.05 loads of vectors for each one that the tile needs: what two multiply-adds
    share is loaded once. (The tile needs one load for each address that is not the stack's. Small
    tiles, for the ends of a batch, may load more.)
A loop may not call a function for its multiply-adds, and each kernel has to have a loop with as many
sums in registers as its largest tile has.

    tests/machine_code/check.py --compiler c++ --level x86-64-v3 [--flag=-O2 ..] [--include DIR ..]
                                [--source FILE]
"""

import argparse
import collections
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile

folder = pathlib.Path(__file__).resolve().parent

KERNELS = ("shrink", "expand", "add_outer_products", "mix_matrices", "mix_matrices_backward")

# Sums that the largest tile of each kernel keeps in registers: with 16 registers, and with 32.
LEAST_SUMS = {"x86-64-v3": 8, "x86-64-v4": 24}

# Loops with fewer multiply-adds are ends of rows.
LEAST_MULTIPLY_ADDS = 6

# Tiles with fewer sums are ends of a batch, and may load what is shared again.
LEAST_SUMS_TO_SHARE = {"x86-64-v3": 9, "x86-64-v4": 12}

MOST_LOADS = 1.05


@dataclasses.dataclass
class Instruction:
    address: int
    name: str
    operands: list
    target: str = ""  # of a call, if it is a function of the same file


@dataclasses.dataclass
class Loop:
    """An innermost loop, with what the check asks of it."""
    multiply_adds: int
    sums: int  # registers in which multiply-adds leave their results
    loads: int
    needed: int
    spills: list  # stores of vectors to the stack
    calls: list  # of functions that multiply and add outside of any loop of their own

    def faults(self, level):
        if self.spills:
            yield f"stores {len(self.spills)} vectors to the stack: {self.spills[0]}"
        if self.calls:
            yield f"calls {readable(self.calls[0])} to multiply and add"
        shares = self.sums >= LEAST_SUMS_TO_SHARE[level]
        if shares and self.loads > MOST_LOADS * self.needed:
            yield f"has {self.loads} loads where {self.needed} suffice"


def split_operands(text):
    """The operands of an instruction in AT&T's syntax, the destination last."""
    operands, depth, current = [], 0, ""
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            operands.append(current)
            current = ""
        else:
            current += character
    return [operand.strip() for operand in operands + [current] if operand.strip()]


def parse(listing):
    """Instructions by function, from what `objdump -dr --no-show-raw-insn` writes."""
    functions = {}
    instructions = None
    for line in listing.splitlines():
        if found := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            instructions = functions.setdefault(found[1], [])
        elif found := re.match(r"\s+([0-9a-f]+):\s+(?:\{\w+\} )?([a-z]\w*(?: [a-z]\w*)*)\s*(.*)$", line):
            words = found[2].split()
            text = re.sub(r"\s*(#|<).*", "", found[3])
            instructions.append(Instruction(int(found[1], 16), words[-1], split_operands(text)))
        elif found := re.match(r"\s+[0-9a-f]+: R_\w+\s+([^\s+-]+)", line):
            if instructions and instructions[-1].name.startswith(("call", "jmp")):
                instructions[-1].target = found[1]
    return functions


def is_memory(operand):
    return operand.endswith(")") or ") {" in operand or "){" in operand


def parts_of_address(operand):
    """Displacement, base and index of a memory operand (the registers without %)."""
    found = re.match(r"([^(]*)\(([^)]*)\)", operand)
    registers = [part.strip() for part in found[2].split(",")]
    base = registers[0].lstrip("%")
    index = registers[1].lstrip("%") if len(registers) > 1 else ""
    return found[1], base, index, registers[2] if len(registers) > 2 else ""


def is_multiply_add(name):
    return re.match(r"vfn?m(add|sub)(132|213|231)p[sd]$|vdpbf16ps$", name) is not None


def whole_register(name):
    """rax for eax, ax, al; r8 for r8d: so that writes to a part are seen."""
    if found := re.match(r"(r\d+)[dwb]?$", name):
        return found[1]
    return {"e": "r"}.get(name[0], "") + name[1:] if name[0] == "e" else name


def successors(instructions):
    """For each instruction, the places of those that may come next in its function."""
    place = {instruction.address: number for number, instruction in enumerate(instructions)}
    for number, instruction in enumerate(instructions):
        following = []
        jumps = instruction.name.startswith("j") and not instruction.target
        if jumps and re.fullmatch(r"[0-9a-f]+", instruction.operands[0]):
            following += [place.get(int(instruction.operands[0], 16))]
        if not instruction.name.startswith(("jmp", "ret", "ud2")):
            following += [number + 1 if number + 1 < len(instructions) else None]
        yield [place for place in following if place is not None]


def components(nodes, edges):
    """The sets of nodes that reach each other, of those with a cycle (Tarjan 1972)."""
    order, low, stack, on_stack, found = {}, {}, [], set(), []
    for root in nodes:
        if root in order:
            continue
        path = [(root, iter(edges[root]))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while path:
            node, rest = path[-1]
            for other in rest:
                if other not in nodes:
                    continue
                if other not in order:
                    order[other] = low[other] = len(order)
                    stack.append(other)
                    on_stack.add(other)
                    path.append((other, iter(edges[other])))
                    break
                if other in on_stack:
                    low[node] = min(low[node], order[other])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == order[node]:
                    first = stack.index(node)
                    found.append(set(stack[first:]))
                    on_stack -= found[-1]
                    del stack[first:]
    return [c for c in found if len(c) > 1 or any(n in edges[n] for n in c)]


def innermost_loops(instructions):
    edges = list(successors(instructions))

    def descend(nodes):
        for loop in components(nodes, edges):
            # Without where it is entered, what is left of a loop are the loops in it.
            entered = {b for a in reached - loop for b in edges[a] if b in loop}
            inner = list(descend(loop - (entered or {min(loop)})))
            yield from inner or [loop]

    # Padding is never run, but would seem to go on to what comes behind it.
    reached, waiting = set(), [0]
    while waiting:
        number = waiting.pop()
        if number not in reached:
            reached.add(number)
            waiting += edges[number]
    for loop in descend(reached):
        yield [instructions[number] for number in sorted(loop)]


def look_at(body, frame, steps):
    """What the check asks of a loop; `frame` has the registers that point at the stack, `steps` the
    functions that multiply and add outside of any loop of their own."""
    versions = collections.Counter()
    addresses, sums, spills, calls = set(), set(), [], []
    loads = multiply_adds = 0
    for instruction in body:
        name, operands = instruction.name, instruction.operands
        if name.startswith(("prefetch", "nop", "lea")) or not operands:
            pass
        elif name.startswith("call"):
            calls += {instruction.target} & steps
        else:
            stores = name.startswith(("v", "mov", "kmov")) and not is_multiply_add(name)
            for place, operand in enumerate(operands):
                if not is_memory(operand):
                    continue
                displacement, base, index, scale = parts_of_address(operand)
                if stores and place == len(operands) - 1:
                    if name.startswith("v") and base in frame and not index:
                        spills.append(" ".join([name, ",".join(operands)]))
                    continue
                if not any(re.match(r"%[xyz]mm", other) for other in operands):
                    continue
                loads += 1
                if base not in frame or index:
                    addresses.add((displacement, base, versions[base], index, versions[index], scale))
        if is_multiply_add(name):
            multiply_adds += 1
            sums.add(re.sub(r"\W.*", "", operands[-1].lstrip("%")))
        if operands and operands[-1].startswith("%") and not name.startswith(("cmp", "test", "j")):
            versions[whole_register(operands[-1].lstrip("%"))] += 1
    return Loop(multiply_adds, len(sums), loads, len(addresses), spills, calls)


def stack_registers(instructions):
    moves = any(i.name == "mov" and i.operands == ["%rsp", "%rbp"] for i in instructions[:20])
    return {"rsp", "rbp"} if moves else {"rsp"}


def hot_loops(functions):
    """The loops worth a look, by function."""
    multiplying = [name for name, of in functions.items()
                   if any(is_multiply_add(i.name) for i in of)]
    bodies = {name: list(innermost_loops(functions[name])) for name in multiplying}
    steps = {name for name in multiplying if not bodies[name]}
    for name, instructions in functions.items():
        if name not in multiplying and any(i.target in steps for i in instructions):
            bodies[name] = list(innermost_loops(instructions))
    result = collections.defaultdict(list)
    for name in bodies:
        frame = stack_registers(functions[name])
        for body in bodies[name]:
            loop = look_at(body, frame, steps)
            if loop.multiply_adds >= LEAST_MULTIPLY_ADDS or loop.calls:
                result[name].append(loop)
    return result


def reached_from(functions, start):
    seen, waiting = set(), [start]
    while waiting:
        function = waiting.pop()
        if function in seen or function not in functions:
            continue
        seen.add(function)
        waiting += [i.target for i in functions[function] if i.target]
    return seen


def kernel_named(functions, name):
    """The function of a kernel: its name in the middle of a mangled one, with its length before."""
    found = [f for f in functions if re.match(rf"_ZN3mhr\w*7kernels{len(name)}{name}I", f)]
    if len(found) != 1:
        sys.exit(f"expected one function {name}, found {len(found)}: is it in kernels.cpp?")
    return found[0]


def readable(function):
    text = subprocess.run(["c++filt", function], check=True, capture_output=True,
                          text=True).stdout.strip()
    return re.sub(r"mhr::\w+::kernels::|xsimd::", "", text).split("(")[0]


def check(listing, level):
    """The lines of the report, and the number of faults."""
    functions = parse(listing)
    loops = hot_loops(functions)
    lines, faults = [], 0
    for name in KERNELS:
        reached = reached_from(functions, kernel_named(functions, name))
        of_kernel = [loop for function in reached for loop in loops.get(function, [])]
        most = max((loop.sums for loop in of_kernel), default=0)
        lines.append(f"{name}: {len(of_kernel)} hot loops, at most {most} sums in registers")
        if most < LEAST_SUMS[level]:
            lines.append(f"  FAULT: expected {LEAST_SUMS[level]} sums in registers or more")
            faults += 1
    for function in loops:
        for loop in loops[function]:
            for fault in loop.faults(level):
                lines.append(f"FAULT: {readable(function)}: a loop of {loop.multiply_adds} "
                             f"multiply-adds {fault}")
                faults += 1
    return lines, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="c++")
    parser.add_argument("--level", required=True, choices=sorted(LEAST_SUMS))
    parser.add_argument("--flag", action="append", default=[], help="default: -O2")
    parser.add_argument("--include", action="append", default=[], help="folders of headers")
    parser.add_argument("--source", type=pathlib.Path, default=folder / "kernels.cpp",
                        help="functions of the kernels' names to look at instead of these")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        made = pathlib.Path(scratch) / "kernels.o"
        subprocess.run([arguments.compiler, "-std=c++17", *(arguments.flag or ["-O2"]),
                        f"-march={arguments.level}", "-DMHR_ONLY_F32=1",
                        f"-I{folder.parent.parent / 'include'}",
                        *[f"-isystem{directory}" for directory in arguments.include if directory],
                        "-c", str(arguments.source), "-o", str(made)], check=True)
        listing = subprocess.run(["objdump", "-dr", "--no-show-raw-insn", str(made)], check=True,
                                 capture_output=True, text=True).stdout
    lines, faults = check(listing, arguments.level)
    print("\n".join(lines))
    if faults:
        sys.exit(f"{faults} faults in the machine code of {arguments.compiler} for "
                 f"{arguments.level}")


if __name__ == "__main__":
    main()
