"""A model as the ranks of a mesh hold it: FSDP2 units with the parameters that tensor parallelism leaves to one rank.

Shape suffixes: B rows, T tokens, D hidden, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from lnlit.models.block import Block
from lnlit.models.build import build_block, build_decoder
from lnlit.models.decoder import Decoder
from lnlit.models.lora import LoRA, add_lora
from lnlit.models.parts import attention_class, layer_class, packed
from lnlit.planning.traced import Trace, Use, attention, fake, quiet_peak, traced
from lnlit.search.choice import SLOTS, Half, alone
from lnlit.specs import BlockSpec, ModelSpec, PartSpec

#: The dimension of a linear's weight that each style of tensor parallelism splits.
_SPLIT_DIM = {"colwise": 0, "rowwise": 1}


@dataclass(frozen=True)
class Mesh:
    """GPUs of equal nodes. `tensor_parallel` of them share each layer, and the others have other rows."""

    nodes: int
    gpus_per_node: int
    tensor_parallel: int = 1

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def data_parallel(self) -> int:
        return self.gpus // self.tensor_parallel

    def __str__(self) -> str:
        return f"{self.nodes} x {self.gpus_per_node} GPUs, tensor_parallel_size {self.tensor_parallel}"


ALONE = Mesh(1, 1)


@dataclass(frozen=True)
class Unit:
    """What one rank holds of an FSDP2 unit while it is gathered: numbers of parameters, of those that are trained, and
    of those in matrices, which mixed precision casts."""

    parameters: int
    trained: int
    matrices: int

    @classmethod
    def of(cls, module: nn.Module) -> Unit:
        members = list(module.parameters())
        trained = [each for each in members if each.requires_grad]
        matrices = [each for each in members if each.dim() > 1]
        return cls(*(sum(each.numel() for each in group) for group in (members, trained, matrices)))

    def __add__(self, other: Unit) -> Unit:
        return Unit(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


class Sized:
    """A model of fake tensors with the parameters that one of `tensor_parallel` ranks holds.

    Attributes:
        blocks: Its blocks, with the rank's part of each linear that is split.
        units: The block of each layer as a unit.
        root: The embedding, the final norm and the head, of whose rows each tensor-parallel rank has its part.
        embeddings: The parameters of these on all ranks together.
        largest: The number of elements of the largest whole tensor.
        parameters: The number of all parameters, on all ranks together.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tensor_parallel: int = 1,
        dtype: torch.dtype = torch.float32,
        lora: LoRA | None = None,
        fuse_gate_up: bool = False,
        trains_head: bool = True,
    ) -> None:
        self.spec = packed(spec) if fuse_gate_up else spec
        self.dtype = dtype
        decoder = build_decoder(self.spec, "meta", dtype)
        if decoder.lm_head is not None and not trains_head:
            decoder.lm_head.requires_grad_(False)
        if lora is not None:
            add_lora(decoder, lora)
        self.parameters = sum(parameter.numel() for parameter in decoder.parameters())
        self.largest = max(parameter.numel() for parameter in decoder.parameters())
        self.decoder: Decoder = decoder
        self.blocks: list[Block] = list(decoder.layers)  # type: ignore[arg-type]
        outside = [decoder.embed_tokens, decoder.norm, *([decoder.lm_head] if decoder.lm_head else [])]
        self.embeddings = Unit.of(nn.ModuleList(outside)).parameters
        if tensor_parallel > 1:
            for block in self.blocks:
                _split(block, tensor_parallel)
            if spec.vocab_size % tensor_parallel == 0:
                for layer in (decoder.embed_tokens, decoder.lm_head):
                    if layer is not None:
                        _keep_part(layer, "weight", 0, tensor_parallel)
        _make_fake(decoder)
        self.units = [Unit.of(block) for block in self.blocks]
        self.root = Unit.of(nn.ModuleList(outside))
        self._uses: dict[object, Use | int] = {}

    @cached_property
    def local(self) -> Unit:
        """All that a rank holds if nothing is sharded over the data-parallel ranks."""
        return sum(self.units, self.root)

    @cached_property
    def largest_unit(self) -> int:
        return max((unit.parameters for unit in self.units), default=0)

    @cached_property
    def kinds(self) -> list[int]:
        """One layer of each kind, the last of them."""
        return list({block: layer for layer, block in enumerate(self.spec.layers)}.values())

    def flops(self, tokens: int, attended: float) -> float:
        """FLOPs of the forward pass of `tokens` tokens through all blocks and the head, on all ranks together."""
        head = 2.0 * self.spec.vocab_size * self.spec.hidden_size
        return tokens * (head + sum(block_flops(self.spec, block, attended) for block in self.spec.layers))

    def use(self, layer: int, tokens: int, *, compiled: bool, mixed: torch.dtype | None, frees_gradients: bool) -> Use:
        """The bytes that a layer takes in training, for a micro-batch of `tokens` tokens."""
        block = self.blocks[layer]
        key = (self.spec.layers[layer], tokens, compiled, mixed, frees_gradients)
        if key not in self._uses:
            run = self._pass(block, tokens, mixed or self.dtype, trains=True)
            self._uses[key] = traced(run, block.parameters(), compiled, mixed, frees_gradients)
        return self._uses[key]  # type: ignore[return-value]

    def quiet(self, layer: int, tokens: int) -> int:
        """The peak of bytes that a layer takes without gradients."""
        key = (self.spec.layers[layer], tokens)
        if key not in self._uses:
            self._uses[key] = quiet_peak(self._pass(self.blocks[layer], tokens, self.dtype, trains=False))
        return self._uses[key]  # type: ignore[return-value]

    def _pass(self, block: Block, tokens: int, dtype: torch.dtype, trains: bool) -> Callable[[Trace], Tensor]:
        parts = (block.attention for block in self.spec.layers)
        sizes = {size for part in parts if (size := attention_class(part).rope_dim(part.args))}
        with fake():
            x_BTD = torch.empty(1, tokens, self.spec.hidden_size, dtype=dtype, requires_grad=trains)
            rope = {size: (torch.empty(1, tokens, size, dtype=dtype),) * 2 for size in sizes}
        return lambda trace: block(x_BTD, attention(trace), rope)


#: A model, built once for all meshes on which its ranks hold the same.
sized = lru_cache(maxsize=32)(Sized)


def block_flops(spec: ModelSpec, block: BlockSpec, attended: float) -> float:
    """FLOPs of one token's forward pass through one layer, as its parts declare them."""
    found = 0.0
    for slot in SLOTS:
        part = getattr(block, slot)
        found += layer_class(slot, part).flops(part.args, part_unit(spec, slot, part).matrices, attended)
    return found


def part_unit(spec: ModelSpec, slot: Half, part: PartSpec) -> Unit:
    """A block with only this part, as a unit."""
    return _block_unit(spec.replace(layers=(alone(slot, part),)))


@lru_cache(maxsize=4096)
def _block_unit(spec: ModelSpec) -> Unit:
    return Unit.of(build_block(spec, 0, spec.layers[0]))


def divides(spec: ModelSpec, size: int) -> str | None:
    """Why `size` tensor-parallel ranks cannot share this model evenly; None if they can."""
    for path, slot, part in spec.parts():
        for what, count in layer_class(slot, part).whole_units(part.args).items():
            if count % size:
                return f"{path} has {count} {what}, which {size} does not divide"
    return None


def _split(block: Block, size: int) -> None:
    """Leaves of each linear that tensor parallelism splits the part of one rank, so that the block computes that
    rank's part, with the same code as ever. Linears with whole results and norms of heads stay whole."""
    for part in filter(None, (block.self_attn, block.mlp)):
        for name, style in part.tensor_parallel.items():
            linear, dim = part.get_submodule(name), _SPLIT_DIM.get(style)  # type: ignore[operator]
            if dim is None or getattr(linear, "weight", None) is None:
                continue
            _keep_part(linear, "weight", dim, size)
            if dim == 0 and getattr(linear, "bias", None) is not None:
                _keep_part(linear, "bias", 0, size)
            if (adapter := getattr(linear, "lora_b" if dim == 0 else "lora_a", None)) is not None:
                _keep_part(adapter, "weight", dim, size)


def _keep_part(module: nn.Module, name: str, dim: int, size: int) -> None:
    whole = module.get_parameter(name)
    setattr(module, name, nn.Parameter(whole.detach().chunk(size, dim)[0], whole.requires_grad))


def _make_fake(decoder: Decoder) -> None:
    for module in decoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with fake():
                here = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(here, parameter.requires_grad))
