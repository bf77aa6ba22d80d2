"""An emulator of the PTX instructions in the GPU kernels, on numpy arrays, for Triton's interpreter."""

import re

import numpy as np
import torch

KINDS = {"bf16": torch.bfloat16, "f16": torch.float16}


def _fused(a, b, c, kind):
    """Return a · b + c of both halves of 32-bit words, rounded once."""
    halves = lambda word: torch.from_numpy(word.view(np.int16)).view(KINDS[kind]).double()
    exact = halves(a) * halves(b) + halves(c)  # float64 holds product (11 x 11 bits) and sum exactly
    return exact.to(KINDS[kind]).view(torch.int16).numpy().view(np.uint32)


def _permuted(a, b, choice):
    """Return ``prmt``: four bytes chosen from the eight of ``a`` and ``b``, by the digits of ``choice``."""
    bytes_of = np.stack([word >> np.uint32(8 * at) & np.uint32(255) for word in (a, b) for at in range(4)])
    byte = lambda at: np.take_along_axis(bytes_of, (choice >> np.uint32(4 * at) & 7)[None].astype(np.int64), 0)[0]
    return sum((byte(at) << np.uint32(8 * at) for at in range(1, 4)), byte(0))


def run(assembly: str, registers: dict[str, np.ndarray]) -> np.ndarray:
    """Run the instructions and return ``$0``. registers: ``$1`` and so on, uint32, all of one shape.

    Raises ValueError at an instruction that is not emulated.
    """
    values = dict(registers)
    like = next(iter(registers.values()))
    value = lambda name: values[name] if name in values else np.full_like(like, int(name, 0))
    for line in (line.strip() for line in assembly.strip().removeprefix("{").removesuffix("}").split(";")):
        if not line or line.startswith(".reg"):
            continue
        guard, name, operands = re.fullmatch(r"(?:@(\w+) )?(\S+) (.*)", line, re.DOTALL).groups()
        out, *rest = (operand.strip() for operand in operands.split(","))
        match name.split("."):
            case ["prmt", "b32"]:
                result = _permuted(*map(value, rest))
            case ["shr", "u32"]:
                result = value(rest[0]) >> value(rest[1])
            case ["and", "b32"]:
                result = value(rest[0]) & value(rest[1])
            case ["or", "b32"]:
                result = value(rest[0]) | value(rest[1])
            case ["mov", "b32"]:
                result = value(rest[0])
            case ["lop3", "b32"] if rest[3] == "0xEA":
                result = value(rest[0]) & value(rest[1]) | value(rest[2])
            case ["fma", "rn", kind]:
                result = _fused(*map(value, rest), kind.removesuffix("x2"))
            case ["setp", "ne", "u32"]:
                result = value(rest[0]) != value(rest[1])
            case ["setp", "ne", "or", "u32"]:
                result = (value(rest[0]) != value(rest[1])) | values[rest[2]]
            case _:
                raise ValueError(f"{line}: an instruction that is not emulated")
        values[out] = result if guard is None else np.where(values[guard], result, values.get(out, np.zeros_like(like)))
    return values["$0"]


def inline_assembly(pair_along: int):
    """Return a replacement for ``InterpreterBuilder.create_inline_asm`` that takes two elements at once.

    pair_along: the axis along which the two elements are neighbours.
    """
    from triton.runtime.interpreter import TensorHandle

    def create(self, assembly, constraints, values, types, is_pure, pack):
        assert pack == 2
        registers = []
        for operand in values:
            pairs = np.ascontiguousarray(np.moveaxis(operand.data, pair_along, -1)).reshape(-1, 2)
            if pairs.dtype.itemsize == 2:  # both elements fit in one register
                registers.append(pairs.view(np.uint32).ravel())
            else:
                registers += [pairs[:, at].astype(np.int64).astype(np.uint32) for at in range(2)]
        assert len(registers) == constraints.count("r") - 1
        result = run(assembly, {f"${number}": register.copy() for number, register in enumerate(registers, 1)})
        shape = list(values[0].data.shape)
        shape.append(shape.pop(pair_along))
        result = np.moveaxis(result.view(values[-1].data.dtype).reshape(shape), -1, pair_along)
        handle = TensorHandle(np.ascontiguousarray(result), types[0].scalar)
        return type("Results", (), {"get_result": lambda self, number: handle})()

    return create
