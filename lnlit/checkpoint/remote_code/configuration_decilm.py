"""Configuration of a Llama whose layers differ. Written by lnlit; loaded with trust_remote_code=True."""

from transformers import PretrainedConfig

_HEAD_KEYS = ("n_heads_in_group", "num_key_value_heads")
_WIDTH_KEYS = ("ffn_mult", "intermediate_size")
_STUB_KEYS = ("no_op", "replace_with_linear")


class AttentionBlock:
    """Attention of one layer: grouped-query with `n_heads_in_group` query heads per KV head, linear, or absent."""

    def __init__(self, given, num_attention_heads):
        self.no_op, self.replace_with_linear, size = _read_slot("attention", given, _HEAD_KEYS)
        self.n_heads_in_group = size.get("n_heads_in_group")
        if "num_key_value_heads" in size:
            self.n_heads_in_group = num_attention_heads // size["num_key_value_heads"]


class FeedForwardBlock:
    """FFN of one layer: SwiGLU of `intermediate_size`, linear, or absent.

    There is an `ffn_mult` attribute where config.json has one, and only there: readers that find one work the width out
    themselves, and not every width can be said that way.
    """

    def __init__(self, given, hidden_size):
        self.no_op, self.replace_with_linear, size = _read_slot("ffn", given, _WIDTH_KEYS)
        self.intermediate_size = size.get("intermediate_size")
        if "ffn_mult" in size:
            self.ffn_mult = size["ffn_mult"]
            # NVIDIA's rule: two thirds of it, rounded down, then up to a multiple of 256.
            self.intermediate_size = -(-int(2 * round(self.ffn_mult, 6) * hidden_size / 3) // 256) * 256


def _read_slot(name, given, size_keys):
    """Whether the slot is absent, whether it is linear, and its size if it has one."""
    for key, value in given.items():
        if key not in (*size_keys, *_STUB_KEYS) and value not in (None, False):
            raise ValueError(f"block_configs: {name}: {key}={value!r} is not supported.")
    no_op, linear = (bool(given.get(key)) for key in _STUB_KEYS)
    size = {key: given[key] for key in size_keys if given.get(key) is not None}
    if no_op or linear:
        size = {}
    elif len(size) != 1:
        raise ValueError(f"block_configs: {name}: expected one of {', '.join(size_keys)}, got {given!r}.")
    return no_op, linear, size


class BlockConfig:
    """One layer. `given` is its entry in config.json, which is written again as it was."""

    def __init__(self, given, num_attention_heads, hidden_size):
        self.given = given
        self.attention = AttentionBlock(given["attention"], num_attention_heads)
        self.ffn = FeedForwardBlock(given["ffn"], hidden_size)


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
        self.block_configs = [
            block if isinstance(block, BlockConfig) else BlockConfig(block, num_attention_heads, hidden_size)
            for block in block_configs
        ]
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
        values["block_configs"] = [block.given for block in self.block_configs]
        return values
