"""Packed linears of other engines, for comparison. There is one function per engine.

Every function makes operators for one shape from (columns, rows, bits, group_size, count, streamed): count is the
number of rows of x, streamed the bytes of distinct weights that a run must read, so that they fit into no cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Operator:
    """An operator to time. ``run`` multiplies ``count`` rows of x with ``copies`` distinct weights of ``nbytes``."""

    name: str
    bits: int
    count: int
    nbytes: int
    copies: int
    run: Callable[[], None]

    def tried(self) -> "Operator":
        """Run once, for errors and for what is only set up at the first call. Returns the operator itself."""
        self.run()
        return self


Make = Callable[[int, int, Sequence[int], int, int, int], list[Operator]]


def onnxruntime(
    columns: int, rows: int, bits: Sequence[int], group_size: int, count: int, streamed: int
) -> list[Operator]:
    """Make ONNX Runtime's MatMulNBits, at accuracy level 4 (int8 activations). One graph has all copies of the weight.

    Raises ImportError if the packages are not installed.
    """
    try:
        import onnx
        import onnxruntime as engine
    except ImportError:
        raise ImportError("pip install 'jettison[onnx]'") from None
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, columns), dtype=np.float32)
    operators = []
    for code_bits in set(bits) & {2, 4, 8}:
        groups = columns // group_size
        nbytes = rows * columns * code_bits // 8 + rows * groups * 4
        copies = max(2, -(-streamed // nbytes))
        nodes, weights = [], []
        for i in range(copies):
            codes = rng.integers(0, 256, (rows, groups, group_size * code_bits // 8), dtype=np.uint8)
            scale = np.full(rows * groups, 0.01, dtype=np.float32)
            weights += [onnx.numpy_helper.from_array(codes, f"w{i}"), onnx.numpy_helper.from_array(scale, f"s{i}")]
            nodes.append(
                onnx.helper.make_node(
                    "MatMulNBits",
                    ["x", f"w{i}", f"s{i}"],
                    [f"y{i}"],
                    domain="com.microsoft",
                    K=columns,
                    N=rows,
                    bits=code_bits,
                    block_size=group_size,
                    accuracy_level=4,
                )
            )
        tensor = lambda name, width: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [count, width])
        results = [tensor(f"y{i}", rows) for i in range(copies)]
        graph = onnx.helper.make_graph(nodes, "linears", [tensor("x", columns)], results, weights)
        opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = engine.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = engine.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        run = lambda session=session: session.run(None, {"x": x})
        operators.append(Operator("onnxruntime", code_bits, count, nbytes, copies, run).tried())
    return operators


def torch_int4pack(
    columns: int, rows: int, bits: Sequence[int], group_size: int, count: int, streamed: int
) -> list[Operator]:
    """Make PyTorch's own linear with 4-bit weights and bfloat16 activations."""
    if 4 not in bits:
        return []
    groups = columns // group_size
    nbytes = rows * columns // 2 + rows * groups * 4
    copies = max(2, -(-streamed // nbytes))
    pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    weights = [pack(torch.randint(0, 16, (rows, columns), dtype=torch.int32), 1) for _ in range(copies)]
    scale_zero = [torch.full((groups, rows, 2), 0.01, dtype=torch.bfloat16) for _ in range(copies)]
    x = torch.randn(count, columns, dtype=torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            for weight, scale in zip(weights, scale_zero, strict=True):
                torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, group_size, scale)

    return [Operator("torch int4pack", 4, count, nbytes, copies, run).tried()]


def torch_bfloat16(
    columns: int, rows: int, bits: Sequence[int], group_size: int, count: int, streamed: int
) -> list[Operator]:
    """Make PyTorch's dense bfloat16 linear, which oneDNN computes."""
    nbytes = 2 * rows * columns
    weights = [torch.randn(rows, columns, dtype=torch.bfloat16) for _ in range(max(2, -(-streamed // nbytes)))]
    x = torch.randn(count, columns, dtype=torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            for weight in weights:
                torch.nn.functional.linear(x, weight)

    return [Operator("torch bfloat16", 16, count, nbytes, len(weights), run).tried()]


PEERS: dict[str, Make] = {
    "onnxruntime": onnxruntime,
    "int4pack": torch_int4pack,
    "bfloat16": torch_bfloat16,
}
