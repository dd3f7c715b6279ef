"""An ONNX graph: its inputs, outputs and sizes, as the file says them. It runs in onnxruntime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.description import Cost, Input, ModelDescription, Output, Source
from dtf_lightning.farm.generate.families import family_of_nodes

_SIZES = {"float32": 4, "float16": 2, "float64": 8, "int64": 8, "int32": 4, "bool": 1}
FREE = 16
"""The size of a dimension that the graph leaves open, beside the batch."""
LARGEST = 3
"""Results that are taken to be there at once."""


def describe_onnx(path: Path, name: str) -> ModelDescription:
    """Return the description of a graph. Raises `SettingsError` for what is none, or has a batch of its own."""
    try:
        import onnx
    except ImportError as error:
        raise SettingsError(
            f"{path} needs onnx and onnxruntime, which are not installed here: pip install onnx onnxruntime"
        ) from error
    try:
        model = onnx.load(str(path), load_external_data=False)
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:
        raise SettingsError(f"{path} is no ONNX file: {type(error).__name__}: {error}") from error
    weights = {one.name: one for one in graph.initializer}
    inputs = tuple(_input(one, onnx, path) for one in graph.input if one.name not in weights)
    if not inputs:
        raise SettingsError(f"the graph of {path} has no inputs")
    counts: dict[str, int] = {}
    for node in graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    integers = inputs[0].dtype.startswith("int")
    return ModelDescription(
        name=name,
        given=str(path),
        source=Source.ONNX,
        family=family_of_nodes(counts, takes_integers=integers, rank=len(inputs[0].shape) + 1),
        inputs=inputs,
        outputs=_outputs(graph.output, onnx),
        cost=_cost(weights, graph.value_info, inputs, onnx),
        build={"where": str(path), "is_file": False, "attribute": ""},
    )


def _dtype(value: Any, onnx: Any) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _dimensions(value: Any) -> list[int | str]:
    return [
        one.dim_value if one.HasField("dim_value") else one.dim_param or "?" for one in value.type.tensor_type.shape.dim
    ]


def _input(value: Any, onnx: Any, path: Path) -> Input:
    dtype, sizes = _dtype(value, onnx), _dimensions(value)
    if dtype not in _SIZES:
        raise SettingsError(f"the input {value.name} of {path} is of {dtype}; expected one of {', '.join(_SIZES)}")
    if not value.name.isidentifier():
        raise SettingsError(f"the input {value.name!r} of {path} is no Python name, by which the tests give it")
    if not sizes or isinstance(sizes[0], int):
        raise SettingsError(
            f"the input {value.name} of {path} has the shape {sizes}: its first dimension is to be open, for batches of "
            "several sizes. Export it with dynamic_shapes"
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else FREE for size in sizes[1:])
    return Input(name=value.name, dtype=dtype, shape=shape)


def _outputs(values: Sequence[Any], onnx: Any) -> tuple[Output, ...]:
    """Return the outputs all of whose dimensions are known but for the batch; none where one is not."""
    found = []
    for value in values:
        sizes = _dimensions(value)
        if not sizes or isinstance(sizes[0], int) or not all(isinstance(size, int) for size in sizes[1:]):
            return ()
        shape = ((1, 0), *((0, int(size)) for size in sizes[1:]))
        found.append(Output(name=value.name, dtype=_dtype(value, onnx), shape=shape))
    return tuple(found)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _cost(weights: Mapping[str, Any], results: Sequence[Any], inputs: Sequence[Input], onnx: Any) -> Cost:
    parameters = sum(_product(one.dims) for one in weights.values())
    held = sum(
        _product(one.dims) * _SIZES.get(str(onnx.helper.tensor_dtype_to_np_dtype(one.data_type)), 4)
        for one in weights.values()
    )
    sizes = sorted(
        (
            _product([size if isinstance(size, int) else FREE for size in _dimensions(one)[1:]]) * 4
            for one in results
            if one.type.tensor_type.shape.dim
        ),
        reverse=True,
    )
    given = sum(_product(one.shape) * _SIZES[one.dtype] for one in inputs)
    per_sample = given + sum(sizes[:LARGEST])
    return Cost(
        parameters=parameters,
        weight_bytes=held,
        forward_fixed=2 * held,  # onnxruntime packs the weights of matrices into an order of its own
        forward_per_sample=per_sample,
        training_fixed=0,
        training_per_sample=0,
        flops_per_sample=2 * parameters,
        how="counted from the graph",
    )
