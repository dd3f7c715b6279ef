"""What a torch module takes and returns, found out with tensors that have no memory (torch's FakeTensor).

Rules that this file guards:
- No weight is allocated: a model far larger than this machine is measured like a small one.
- What is counted are storages, each from its creation to its end: views and in-place operations cost nothing.
- The batch is told apart by two passes of different batches: what grows between them belongs to a sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # torch's documentation names it by this path
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dtf_lightning.farm.generate.description import Cost, Input, Output

BATCHES = (4, 6)
"""Of the two passes. None of them is 1, which torch treats apart."""


class PeakTracker(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside it make, while they live.

    `peak` is the most that there was at once, with what `hold` was told of and what kernels are known to take beside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def hold(self, tensors: Sequence[torch.Tensor]) -> None:
        """Count these tensors, too, as long as they live."""
        for tensor in tensors:
            self._take(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._take(leaf)
        self.peak = max(self.peak, self.now + _workspace(func, args))
        return made

    def _take(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            if self._known.pop(key, None) is not None:
                self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _workspace(func: Any, args: Sequence[Any]) -> int:
    """Return the bytes that a kernel takes for itself while it runs, as far as they are known: those of convolutions.

    On one thread the CPU unfolds the input of a 3 x 3 convolution of stride 1 into columns, the whole batch at once (ATen's
    `slow_conv2d`); other convolutions get input, weights and output in an order of oneDNN's own.
    """
    name = func.overloadpacket.__name__
    if name == "convolution":
        source, weight, stride = args[0], args[1], args[3]
    elif name == "convolution_backward":
        source, weight, stride = args[1], args[2], args[4]
    else:
        return 0
    places = source.shape[0]
    for size, step in zip(source.shape[2:], stride, strict=False):
        places *= max(1, size // step)
    if tuple(weight.shape[2:]) == (3, 3) and set(stride) == {1}:
        return int(weight[0].numel() * places * source.element_size())
    return int((source.numel() + weight.numel() + weight.shape[0] * places) * source.element_size())


def random_inputs(inputs: Sequence[Input], batch_size: int) -> dict[str, torch.Tensor]:
    """Return a batch of random inputs by name."""
    made = {}
    for one in inputs:
        dtype, shape = getattr(torch, one.dtype), (batch_size, *one.shape)
        whole = not dtype.is_floating_point
        made[one.name] = torch.randint(0, one.below, shape, dtype=dtype) if whole else torch.randn(shape, dtype=dtype)
    return made


def tensors_of(returned: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of what a model returned, by name: a tensor, a list, a mapping, or a dataclass of them."""
    if isinstance(returned, torch.Tensor):
        return {prefix or "output": returned}
    if dataclasses.is_dataclass(returned) and not isinstance(returned, Mapping):
        returned = {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
    if isinstance(returned, list | tuple):
        names = getattr(returned, "_fields", None) or [f"output_{place}" for place in range(len(returned))]
        returned = dict(zip(names, returned, strict=True))
    found: dict[str, torch.Tensor] = {}
    if isinstance(returned, Mapping):
        for name, value in returned.items():
            found |= tensors_of(value, f"{prefix}.{name}" if prefix else str(name))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What two passes told."""

    cost: Cost
    outputs: tuple[Output, ...]


Call = Callable[[torch.nn.Module, dict[str, torch.Tensor]], Any]
"""Gives a batch to a model, and returns what it returns."""


def call_forward(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    """Give the batch to `forward`, by name."""
    return model(**batch)


def call_training_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    """Give the batch to a Lightning module's `training_step`: one tensor as it is, several as a tuple."""
    tensors = tuple(batch.values())
    step: Any = model.training_step
    return step(tensors[0] if len(tensors) == 1 else tensors, 0)


def measure(build: Callable[[], torch.nn.Module], inputs: Sequence[Input], call: Call = call_forward) -> Measured:
    """Return what a model takes and returns. Raises whatever the model raises for these inputs.

    `build` is called once, with tensors on torch's device `meta`; and once more with real ones if it needs their values.
    """
    try:
        with torch.device("meta"):
            model = build()
    except Exception:  # it computes with values, as a schedule in a list; the second try says what is really wrong
        model = build()
    with FakeTensorMode(allow_non_fake_inputs=True), _slow_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a Lightning module logs, and has no trainer yet
        _give_no_memory(model)
        held = [*model.parameters(), *model.buffers()]
        passes = [_forward(model.eval(), held, inputs, batch_size, call) for batch_size in BATCHES]
        try:
            trained = [_train(model.train(), held, inputs, batch_size, call) for batch_size in BATCHES]
        except Exception:  # layers that are left out by chance, say: their values are asked for
            trained = [_train(model.eval(), held, inputs, batch_size, call) for batch_size in BATCHES]
    weights = sum(_bytes(held))
    forward = _line([peak for peak, _, _ in passes])
    moments = 2 * sum(_bytes([parameter for parameter in held if parameter.requires_grad]))
    training = _line([peak for peak in trained if peak is not None] if all(trained) else [0, 0])
    cost = Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=weights,
        forward_fixed=forward[0],
        forward_per_sample=forward[1],
        # The moments are there from the second step on; the step itself makes copies of the weights for a while.
        training_fixed=max(training[0] + moments, weights + 2 * moments),
        training_per_sample=training[1],
        flops_per_sample=passes[0][1] // BATCHES[0],
        how="counted over one pass with tensors that have no memory",
    )
    return Measured(cost=cost, outputs=_outputs(*(shapes for _, _, shapes in passes)))


@contextlib.contextmanager
def _slow_path() -> Iterator[None]:
    """Have `nn.TransformerEncoder` computed from its parts: its fused kernel can be neither counted nor faked."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _give_no_memory(model: torch.nn.Module) -> None:
    """Replace parameters and buffers by such without memory on the CPU; what is shared stays shared."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if id(tensor) not in made:
                empty = torch.empty_like(tensor, device="cpu")
                if isinstance(tensor, torch.nn.Parameter):
                    empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                made[id(tensor)] = empty
            setattr(module, name, made[id(tensor)])


def _bytes(tensors: Sequence[torch.Tensor]) -> list[int]:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return list(storages.values())


def _forward(
    model: torch.nn.Module, held: Sequence[torch.Tensor], inputs: Sequence[Input], batch_size: int, call: Call
) -> tuple[int, int, dict[str, tuple[str, tuple[int, ...]]]]:
    """Return the peak, the operations, and dtype and shape of each output."""
    tracker = PeakTracker()
    batch = random_inputs(inputs, batch_size)
    tracker.hold([*held, *batch.values()])
    with torch.no_grad(), FlopCounterMode(display=False) as flops, tracker:
        returned = call(model, batch)
    shapes = {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors_of(returned).items()
    }
    return tracker.peak, flops.get_total_flops(), shapes


def _train(
    model: torch.nn.Module, held: Sequence[torch.Tensor], inputs: Sequence[Input], batch_size: int, call: Call
) -> int | None:
    """Return the peak of forward and backward; `None` for a model that has nothing to train."""
    tracker = PeakTracker()
    batch = random_inputs(inputs, batch_size)
    tracker.hold([*held, *batch.values()])
    model.zero_grad()
    with tracker:
        floats = [tensor for tensor in tensors_of(call(model, batch)).values() if tensor.requires_grad]
        if not floats:
            return None
        torch.stack([tensor.float().square().mean() for tensor in floats]).sum().backward()
    model.zero_grad()
    return tracker.peak


def _line(values: Sequence[int]) -> tuple[int, int]:
    """Return (fixed, per sample) of the line through the two passes; neither is negative."""
    (first, second), (few, many) = BATCHES, values
    slope = max(0, -(-(many - few) // (second - first)))
    return max(0, few - first * slope), slope


def _outputs(
    few: Mapping[str, tuple[str, tuple[int, ...]]], many: Mapping[str, tuple[str, tuple[int, ...]]]
) -> tuple[Output, ...]:
    """Tell the batch apart in each dimension. An output whose rank differs between passes is left out."""
    first, second = BATCHES
    found = []
    for name, (dtype, shape) in few.items():
        other = many.get(name, ("", ()))[1]
        if len(other) != len(shape):
            continue
        sizes = []
        for one, two in zip(shape, other, strict=True):
            slope, rest = divmod(two - one, second - first)
            sizes.append((slope, one - first * slope) if not rest else (0, one))
        found.append(Output(name=name, dtype=dtype, shape=tuple(sizes)))
    return tuple(found)
