"""Configuration of a Llama whose layers differ. Written by lnlit; loaded with trust_remote_code=True."""

from transformers import PretrainedConfig


class AttentionBlock:
    """Attention of one layer: grouped-query with `n_heads_in_group` query heads per KV head, linear, or absent."""

    def __init__(self, no_op=False, replace_with_linear=False, n_heads_in_group=None):
        self.no_op = no_op
        self.replace_with_linear = replace_with_linear
        self.n_heads_in_group = n_heads_in_group


class FeedForwardBlock:
    """FFN of one layer: SwiGLU of `intermediate_size`, linear, or absent.

    There is no `ffn_mult` attribute, on purpose: readers that find one round the width to a multiple of 256.
    """

    def __init__(self, no_op=False, replace_with_linear=False, intermediate_size=None):
        self.no_op = no_op
        self.replace_with_linear = replace_with_linear
        self.intermediate_size = intermediate_size


class BlockConfig:
    """One layer."""

    def __init__(self, attention, ffn):
        self.attention = attention if isinstance(attention, AttentionBlock) else AttentionBlock(**attention)
        self.ffn = ffn if isinstance(ffn, FeedForwardBlock) else FeedForwardBlock(**ffn)

    def to_dict(self):
        return {"attention": dict(vars(self.attention)), "ffn": dict(vars(self.ffn))}


class DeciLMConfig(PretrainedConfig):
    """Llama's configuration, with `block_configs` in place of one KV-head count and one FFN width."""

    model_type = "nemotron-nas"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=4096,
        num_hidden_layers=0,
        num_attention_heads=32,
        head_dim=None,
        block_configs=(),
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        attention_bias=False,
        attention_dropout=0.0,
        mlp_bias=False,
        initializer_range=0.02,
        use_cache=True,
        rope_parameters=None,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.block_configs = [b if isinstance(b, BlockConfig) else BlockConfig(**b) for b in block_configs]
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.mlp_bias = mlp_bias
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.rope_parameters = rope_parameters
        kwargs |= {"tie_word_embeddings": tie_word_embeddings, "pad_token_id": pad_token_id}
        kwargs |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**kwargs)

    def to_dict(self):
        values = super().to_dict()
        values["block_configs"] = [block.to_dict() for block in self.block_configs]
        return values
