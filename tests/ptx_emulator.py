"""Runs the instructions that the GPU kernels are given in PTX, on numpy arrays, so that Triton's interpreter can."""

import re

import numpy as np
import torch

KINDS = {"bf16": torch.bfloat16, "f16": torch.float16}


def _fused(a, b, c, kind):
    """a · b + c of both halves of 32-bit words, rounded once."""
    halves = lambda word: torch.from_numpy(word.view(np.int16)).view(KINDS[kind]).double()
    exact = halves(a) * halves(b) + halves(c)  # a product of 11 bits each, and the sum, are exact in 53
    return exact.to(KINDS[kind]).view(torch.int16).numpy().view(np.uint32)


def _permuted(a, b, choice):
    bytes_of = np.stack([word >> np.uint32(8 * at) & np.uint32(255) for word in (a, b) for at in range(4)])
    taken = lambda at: np.take_along_axis(bytes_of, (choice >> np.uint32(4 * at) & 7)[None].astype(np.int64), 0)[0]
    return sum((taken(at) << np.uint32(8 * at) for at in range(1, 4)), taken(0))


def run(assembly: str, registers: dict[str, np.ndarray]) -> np.ndarray:
    """``$0`` after the instructions. registers: ``$1`` and so on, uint32, of one shape."""
    held = dict(registers)
    one = next(iter(registers.values()))
    value = lambda name: held[name] if name in held else np.full_like(one, int(name, 0))
    for line in (line.strip() for line in assembly.strip().removeprefix("{").removesuffix("}").split(";")):
        if not line or line.startswith(".reg"):
            continue
        guard, name, operands = re.fullmatch(r"(?:@(\w+) )?(\S+) (.*)", line, re.DOTALL).groups()
        to, *rest = (operand.strip() for operand in operands.split(","))
        match name.split("."):
            case ["prmt", "b32"]:
                found = _permuted(*map(value, rest))
            case ["shr", "u32"]:
                found = value(rest[0]) >> value(rest[1])
            case ["and", "b32"]:
                found = value(rest[0]) & value(rest[1])
            case ["or", "b32"]:
                found = value(rest[0]) | value(rest[1])
            case ["mov", "b32"]:
                found = value(rest[0])
            case ["lop3", "b32"] if rest[3] == "0xEA":
                found = value(rest[0]) & value(rest[1]) | value(rest[2])
            case ["fma", "rn", kind]:
                found = _fused(*map(value, rest), kind.removesuffix("x2"))
            case ["setp", "ne", "u32"]:
                found = value(rest[0]) != value(rest[1])
            case ["setp", "ne", "or", "u32"]:
                found = (value(rest[0]) != value(rest[1])) | held[rest[2]]
            case _:
                raise ValueError(f"{line}: an instruction that is not emulated")
        held[to] = found if guard is None else np.where(held[guard], found, held.get(to, np.zeros_like(one)))
    return held["$0"]


def inline_assembly(pair_along: int):
    """Stands for ``InterpreterBuilder.create_inline_asm`` where two elements go through at once: neighbours along that
    axis."""
    from triton.runtime.interpreter import TensorHandle

    def create(self, assembly, constraints, values, types, is_pure, pack):
        assert pack == 2
        registers = []
        for given in values:
            moved = np.ascontiguousarray(np.moveaxis(given.data, pair_along, -1)).reshape(-1, 2)
            if moved.dtype.itemsize == 2:  # both in one
                registers.append(moved.view(np.uint32).ravel())
            else:
                registers += [moved[:, at].astype(np.int64).astype(np.uint32) for at in range(2)]
        assert len(registers) == constraints.count("r") - 1
        found = run(assembly, {f"${number}": each.copy() for number, each in enumerate(registers, 1)})
        shape = list(values[0].data.shape)
        shape.append(shape.pop(pair_along))
        found = np.moveaxis(found.view(values[-1].data.dtype).reshape(shape), -1, pair_along)
        handle = TensorHandle(np.ascontiguousarray(found), types[0].scalar)
        return type("Results", (), {"get_result": lambda self, number: handle})()

    return create
