"""A family of transformers' decoders: rules between config.json and a spec that are used in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lnlit.checkpoint.hf import CONFIG, Config, config_from_spec, model_type
from lnlit.checkpoint.names import Rules
from lnlit.checkpoint.readers import grouped, windows
from lnlit.checkpoint.safetensors_folder import folder_slices, folder_weights, is_tied
from lnlit.errors import UserError
from lnlit.files import read_json
from lnlit.interfaces import CheckpointFormat, Export
from lnlit.interfaces.checkpoint import Sliced
from lnlit.specs import BlockSpec, ModelSpec, PartSpec

if TYPE_CHECKING:
    from torch import Tensor


class Family(CheckpointFormat):
    """One `model_type` of pre-norm decoders. Reading follows the rules. Writing puts a spec's values under the rules'
    keys and reads the result again; if that differs from the spec, the family cannot express it."""

    #: transformers' class.
    architecture: ClassVar[str]
    #: That class's defaults of missing keys, if they differ from the common ones.
    defaults: ClassVar[Mapping[str, Any]]
    #: The part types of every layer.
    attention_type: ClassVar[str] = "gqa"
    ffn_type: ClassVar[str] = "swiglu"
    #: Arguments of each attention and FFN, and their keys in config.json.
    attention: ClassVar[Mapping[str, str]] = {
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
    }
    ffn: ClassVar[Mapping[str, str]] = {"intermediate_size": "intermediate_size"}
    #: Fixed arguments of all attention parts of the family.
    always: ClassVar[Mapping[str, Any]] = {}
    #: Names of weights that are not Llama's: an `Export`'s `names`.
    names: ClassVar[Rules] = {}
    #: Programs that ignore windows without a clear warning.
    windowless: ClassVar[tuple[str, ...]] = ("mlx-lm", "llama.cpp")

    def layer(self, config: Config, index: int) -> dict[str, Any]:
        """Further arguments of the attention in one layer."""
        config.rotates_all()
        return {}

    def keys(self, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The config keys that `layer` reads, from the arguments of every layer's attention."""
        return {}

    def block(self, config: Config, index: int) -> BlockSpec:
        attention = {**config.arguments(self.attention), **self.always, **self.layer(config, index)}
        return BlockSpec(PartSpec(self.attention_type, attention), PartSpec(self.ffn_type, config.arguments(self.ffn)))

    def recognises(self, path: Path) -> bool:
        return model_type(path) == self.model_type

    def read_spec(self, path: Path) -> ModelSpec:
        spec = self._spec(read_json(path / CONFIG), path / CONFIG)
        return spec.replace(tie_embeddings=is_tied(path, spec.tie_embeddings))

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "weights" in vars(cls) and "slices" not in vars(cls):  # it reads in a way of its own
            cls.slices = CheckpointFormat.slices  # type: ignore[method-assign]

    def weights(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from folder_weights(path, self.read_spec(path), self.names)

    def slices(self, path: Path) -> Iterator[tuple[str, Sliced]]:
        yield from folder_slices(path, self.read_spec(path), self.names)

    def export(self, spec: ModelSpec) -> Export:
        first = spec.layers[0] if spec.layers else BlockSpec(PartSpec(""), PartSpec(""))
        config = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # or the class puts ids of its own there
            **config_from_spec(spec),
            **{key: first.ffn.args.get(name, False) for name, key in self.ffn.items()},
            **{key: first.attention.args.get(name, False) for name, key in self.attention.items()},
            **self.keys([block.attention.args for block in spec.layers]),
        }
        try:
            said = self._spec(config, Path(CONFIG))
        except UserError as error:
            raise UserError(f"it cannot be said: {error}") from error
        check_said(spec, said)
        return Export(config if self._of_transformers() else {**config, "spec": spec.to_json()}, self.names)

    def obstacles(self, spec: ModelSpec, folder: Path | None) -> Mapping[str, Sequence[str]]:
        """What keeps programs from loading a folder of a family that transformers does not have: they know only what
        the folder brings, `auto_map` for transformers and `spec` for lnlit-vllm."""
        if self._of_transformers():
            return dict.fromkeys(self.windowless, grouped(windows(spec)))
        unknown = [f"it knows no model type {self.model_type!r}"]
        found: dict[str, Sequence[str]] = {"vLLM": unknown, "mlx-lm": unknown, "llama.cpp": unknown}
        if "auto_map" not in self.export(spec).config:
            found["transformers"] = unknown
        if self.names:
            found["vLLM with lnlit-vllm"] = ["it reads weights under Llama's names alone, and this folder has others"]
        return found

    def _of_transformers(self) -> bool:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        return self.model_type in CONFIG_MAPPING_NAMES

    def _spec(self, values: Mapping[str, Any], where: Path) -> ModelSpec:
        config = Config(values, where, self.defaults)
        return config.spec(tuple(self.block(config, index) for index in range(config.integer("num_hidden_layers"))))


def check_said(spec: ModelSpec, said: ModelSpec) -> None:
    """Raises `UserError` naming the first place where `said`, read from a config.json, differs from `spec`."""
    for (path, _, wanted), (_, _, part) in zip(spec.parts(), said.parts(), strict=False):
        if part != wanted:
            raise UserError(f"{path}: its config.json would say {part}, and there is {wanted}")
    if said != spec:
        raise UserError(f"its config.json would not say the same: {spec.diff(said)[0]}")
