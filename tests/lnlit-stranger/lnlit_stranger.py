"""A stranger's plugin of one file: attention whose heads are normalised, and the folders of models made of it.

Shape suffixes: B rows, T tokens, D hidden, H query heads, K key/value heads, d head size.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from lnlit.interfaces import AttentionLayer, Export, Family, LayerContext, RMSNorm, apply_rope, pool_kv_heads
from lnlit.specs import ModelSpec

#: What transformers runs. It travels with every folder.
MODELING = """from transformers import Qwen3Config, Qwen3ForCausalLM


class StrangerConfig(Qwen3Config):
    model_type = "stranger"


class StrangerForCausalLM(Qwen3ForCausalLM):
    config_class = StrangerConfig
"""
CODE = {
    "AutoConfig": "modeling_stranger.StrangerConfig",
    "AutoModelForCausalLM": "modeling_stranger.StrangerForCausalLM",
}


class NormedAttention(nn.Module, AttentionLayer):
    """Grouped-query attention with a norm on each query and key head, as Qwen3 has it."""

    def __init__(self, context: LayerContext, *, queries: int, keys: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.q_proj = nn.Linear(context.hidden_size, queries * size, bias=False)
        self.k_proj = nn.Linear(context.hidden_size, keys * size, bias=False)
        self.v_proj = nn.Linear(context.hidden_size, keys * size, bias=False)
        self.o_proj = nn.Linear(queries * size, context.hidden_size, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(size, eps=context.norm_eps) for _ in range(2))

    def forward(self, x_BTD, attend, rope):
        q_BTHd, k_BTKd, v_BTKd = (
            p(x_BTD).unflatten(-1, (-1, self.size)) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BTHd, k_BTKd = self.q_norm(q_BTHd), self.k_norm(k_BTKd)
        return self.o_proj(attend(*(apply_rope(x, *rope[self.size]) for x in (q_BTHd, k_BTKd)), v_BTKd).flatten(2))

    @classmethod
    def kv_cache_shape(cls, args):
        return args["keys"], args["size"]

    @classmethod
    def short_name(cls, args):
        return f"kv{args['keys']}"

    @classmethod
    def smaller(cls, args, space):
        return [{**args, "keys": count} for count in space.fewer_heads(args["keys"])]

    @classmethod
    def conversions(cls, args, parent):
        if parent.layer is not cls or {**parent.args, "keys": args["keys"]} != args:
            return ()
        return (lambda weights, scores: pool_kv_heads(weights, parent.args["keys"], args["keys"]),)


class Stranger(Family):
    """`model_type: stranger`."""

    model_type, architecture = "stranger", "StrangerForCausalLM"
    defaults = {"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32}
    attention_type = "normed"
    attention = {"queries": "num_attention_heads", "keys": "num_key_value_heads", "size": "head_dim"}

    def export(self, spec: ModelSpec) -> Export:
        export = super().export(spec)
        return replace(export, config={**export.config, "auto_map": CODE}, files={"modeling_stranger.py": MODELING})
