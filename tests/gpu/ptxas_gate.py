"""Fails when a hot kernel keeps registers in memory.

Usage: ptxas_gate.py HOT_KERNELS FOLDER

HOT_KERNELS has a line for each kernel: a regular expression of its mangled name, and the most
registers that it may use. FOLDER is searched for logs of ptxas (ptxas_log.sh), OBJECT.ptxas.
"""

import re
import sys
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\S+)' for")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def read_log(text):
    """{mangled name: {"stack", "stores", "loads", "registers"}} of one log."""
    kernels, current = {}, None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            current = kernels.setdefault(match[1], {})
        elif current is not None and (match := MEMORY.search(line)):
            current.update(stack=int(match[1]), stores=int(match[2]), loads=int(match[3]))
        elif current is not None and (match := REGISTERS.search(line)):
            current["registers"] = int(match[1])
            current = None  # what follows belongs to no kernel, until the next entry
    return kernels


def read_list(text):
    """[(regular expression, most registers)]"""
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    return [(re.compile(line[0]), int(line[1])) for line in lines if line]


def problems(hot, kernels):
    for pattern, most_registers in hot:
        found = {name: usage for name, usage in kernels.items() if pattern.search(name)}
        if not found:
            yield f"{pattern.pattern}: no kernel of this name was built"
        for name, usage in found.items():
            if usage["stack"] or usage["stores"] or usage["loads"]:
                yield (
                    f"{name}: {usage['stack']} bytes of stack, {usage['stores']} of spill stores, "
                    f"{usage['loads']} of spill loads"
                )
            if usage["registers"] > most_registers:
                yield f"{name}: {usage['registers']} registers, limit {most_registers}"


def main():
    hot = read_list(Path(sys.argv[1]).read_text(encoding="utf-8"))
    kernels = {}
    for log in sorted(Path(sys.argv[2]).rglob("*.ptxas")):
        kernels.update(read_log(log.read_text(encoding="utf-8")))
    found = list(problems(hot, kernels))
    for problem in found:
        print(problem)
    print(f"ptxas: {len(kernels)} kernels, {len(hot)} limits, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
