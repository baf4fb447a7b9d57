"""Adapters with which lnlit would compute something else than PEFT are refused in one line; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lnlit.checkpoint.convert import import_model
from lnlit.checkpoint.formats import open_checkpoint
from lnlit.checkpoint.peft import PeftFolder, start_of, tensor_name
from lnlit.errors import UserError
from lnlit.models.lora import LoRA, add_lora
from lnlit.models.parts import packed
from lnlit.modules.grpo import GRPO
from lnlit.modules.optim import AdamW
from lnlit.objectives.kl import KL
from lnlit.testing.tiny import tiny_decoder, tiny_folder, tiny_spec

MODULES = [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")]
#: Inputs and outputs of what is adapted in the tiny model.
WIDTHS = {"q_proj": (32, 32), "v_proj": (32, 16), "gate_proj": (32, 48), "up_proj": (32, 48)}


def factors(modules=MODULES, rank: int = 2) -> dict[str, torch.Tensor]:
    generator, found = torch.Generator().manual_seed(0), {}
    for module in modules:
        inputs, outputs = WIDTHS[module.rpartition(".")[2]]
        for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            found[f"base_model.model.{module}.lora_{factor}.weight"] = torch.randn(shape, generator=generator)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def adapter(tmp_path, base):
    """A function that writes an adapter with other keys or tensors (None leaves one out), and returns its folder."""

    def write(keys: dict | None = None, tensors: dict | None = None) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base),
            "r": 2,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "v_proj"],
        }
        (folder / "adapter_config.json").write_text(json.dumps(config | (keys or {})))
        found = {name: t for name, t in (factors() | (tensors or {})).items() if t is not None}
        save_file(found, folder / "adapter_model.safetensors")
        return folder

    return write


KEYS = {
    "dora without lengths": ({"use_dora": True}, "q_proj.lora_magnitude_vector is missing"),
    "with singular values": ({"kasa_config": {"x": 1}}, "kasa_config: .* is not read. lnlit reads LoRA and DoRA of"),
    "another kind": ({"peft_type": "ADALORA"}, "peft_type: 'ADALORA' is not read"),
    "no kind": ({"peft_type": None}, "peft_type: None is not read"),
    "another task": ({"task_type": "SEQ_CLS"}, "task_type: 'SEQ_CLS' has a head of its own"),
    "biases": ({"bias": "lora_only"}, "bias: 'lora_only', so biases of the base differ too"),
    "biases of factors": ({"lora_bias": True}, "lora_bias: True is not read"),
    "whole modules": ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save: \['embed_tokens'\] is not read"),
    "tokens": ({"trainable_token_indices": [3]}, r"trainable_token_indices: \[3\] is not read"),
    "parameters": ({"target_parameters": ["x.weight"]}, r"target_parameters: \['x.weight'\] is not read"),
    "layers twice": ({"layer_replication": [[0, 2], [1, 2]]}, r"layer_replication: .* is not read"),
    "after a word": ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens: \[5\] is not read"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out: True is not read"),
    "from singular values": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' may have changed the base too"),
    "of a quantised base": ({"init_lora_weights": "loftq"}, "init_lora_weights: 'loftq' may have changed the base"),
    "of a later PEFT": ({"use_wonder": {"strength": 2}}, r"use_wonder: \{'strength': 2\} is not read"),
    "rank 0": ({"r": 0}, "r: expected a positive integer, got 0"),
    "rank as text": ({"r": "2"}, "r: expected a positive integer, got '2'"),
    "rank true": ({"r": True}, "r: expected a positive integer, got True"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha: expected a positive number, got nan"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha: expected a positive number, got 0"),
    "no targets": ({"target_modules": None}, "target_modules: expected names of modules or a regular expression"),
    "targets of numbers": ({"target_modules": [1]}, "target_modules: expected names of modules"),
    "no expression": ({"target_modules": "(q"}, r"target_modules: '\(q' is no regular expression"),
    "pattern of text": (
        {"rank_pattern": {"q_proj": "3"}},
        "rank_pattern: q_proj: expected a positive integer, got '3'",
    ),
    "pattern as list": ({"alpha_pattern": [1]}, r"alpha_pattern: expected a mapping"),
    "another rank": ({"r": 3}, r"are \[2, 32\] and \[32, 2\], and adapter_config.json says rank 3"),
    "another rank of some": ({"rank_pattern": {"v_proj": 4}}, "says rank 4. The two files are not of one adapter"),
    "more than there is": (
        {"target_modules": ["q_proj", "v_proj", "up_proj"]},
        r"says that model.layers.0.mlp.up_proj is",
    ),
    "an expression for more": ({"target_modules": ".*(q|v|o)_proj"}, r"model.layers.0.self_attn.o_proj is adapted, of"),
    "no base": ({"base_model_name_or_path": None}, "base_model_name_or_path names no model. .* --base MODEL"),
    "a base on the hub": ({"base_model_name_or_path": "some/model"}, "its base is not here: .*hf download some/model"),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_configuration_that_says_more_is_refused(adapter, tmp_path, name):
    keys, message = KEYS[name]
    with pytest.raises(UserError, match=message) as refused:
        import_model(adapter(keys), tmp_path / "out")
    assert "\n" not in str(refused.value) and str(tmp_path / "adapter") in str(refused.value)
    assert not (tmp_path / "out").exists()


Q = "base_model.model.model.layers.0.self_attn.q_proj"
ONE = torch.ones(1)
HEAD = "base_model.model.lm_head.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"
TENSORS = {
    "a bias": ({f"{Q}.lora_B.bias": ONE}, "lora_B.bias is no factor of a linear's adapter"),
    "a magnitude": ({f"{Q}.lora_magnitude_vector": ONE}, "lora_magnitude_vector is no factor"),
    "a whole weight": ({f"{Q}.base_layer.weight": ONE}, "base_layer.weight is no factor"),
    "a head that was tied": ({HEAD: torch.ones(258, 32)}, r"lm_head.weight is another one than the base's lm_head"),
    "a larger embedding": (
        {EMBEDDING: torch.ones(300, 32)},
        r"embed_tokens.weight is another one than the base's model.em",
    ),
    "an embedding's": ({"base_model.model.model.embed_tokens.lora_embedding_A": ONE}, "lora_embedding_A is no factor"),
    "a name that was not taken out": ({f"{Q}.lora_A.default.weight": ONE}, "lora_A.default.weight is no factor"),
    "half": ({f"{Q}.lora_B.weight": None}, f"tensor {Q}.lora_B.weight is missing"),
    "a linear less": (
        {f"{Q}.lora_{x}.weight": None for x in "AB"},
        r"says that model.layers.0.self_attn.q_proj is adapted",
    ),
    "nothing": (dict.fromkeys(factors()), "holds no tensor"),
    "no number": ({f"{Q}.lora_B.weight": torch.full((32, 2), torch.nan)}, "has a value that is no finite number"),
    "integers": ({f"{Q}.lora_B.weight": torch.ones(32, 2, dtype=torch.int8)}, "has dtype I8; quantised"),
    "empty, as ZeRO-3 saves it": ({f"{Q}.lora_B.weight": torch.ones(0)}, r"are \[2, 32\] and \[0\]"),
    "a convolution's": ({f"{Q}.lora_A.weight": torch.ones(2, 32, 1, 1)}, r"are \[2, 32, 1, 1\] and"),
    "of another model": ({f"{Q}.lora_A.weight": torch.ones(2, 40)}, r"q_proj as 32 x 40, and in the base .* 32 x 32"),
    "of a norm": (
        {f"base_model.model.model.norm.lora_{x}.weight": torch.ones(2, 2) for x in "AB"},
        r"adapts model.norm, and the base .* has no such linear. .* Linears of the base: down_proj, gate_proj",
    ),
    "of the tied head": (
        {
            "base_model.model.lm_head.lora_A.weight": torch.ones(2, 32),
            "base_model.model.lm_head.lora_B.weight": torch.ones(258, 2),
        },
        "adapts lm_head, and the base .* has no such linear",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_no_adapter_of_the_base_are_refused(adapter, tmp_path, name):
    tensors, message = TENSORS[name]
    with pytest.raises(UserError, match=message) as refused:
        import_model(adapter(tensors=tensors), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_named(adapter, tmp_path):
    file = adapter() / "adapter_model.safetensors"
    whole = file.read_bytes()
    for content, message in ((whole[:-50], "not a complete safetensors file"), (b"version https://git-lfs", "git lfs")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"adapter_model.safetensors: .*{message}"):
            import_model(file.parent, tmp_path / "out")
    file.rename(file.with_name("adapter_model.bin"))
    with pytest.raises(
        UserError, match=r"it lacks adapter_model.safetensors. It holds adapter_model.bin; pickles can run"
    ):
        import_model(file.parent, tmp_path / "out")
    (file.parent / "adapter_config.json").write_text("[1")
    with pytest.raises(UserError, match=r"adapter_config.json: cannot be read as the configuration of a PEFT adapter"):
        import_model(file.parent, tmp_path / "out")


def test_a_sum_that_its_dtype_cannot_hold_is_refused(adapter, tmp_path):
    half = import_model(tiny_folder(tmp_path / "single"), tmp_path / "half", dtype="float16")
    large = {f"{Q}.lora_B.weight": torch.full((32, 2), 1e6)}
    with pytest.raises(
        UserError, match=r"adapter: with it model.layers.0.self_attn.q_proj.weight has numbers that .*16"
    ):
        import_model(adapter({"base_model_name_or_path": str(half)}, large), tmp_path / "out")


def test_an_adapter_is_no_model_and_says_what_to_do(adapter):
    with pytest.raises(
        UserError, match=r"not a model that lnlit reads. It is a LoRA adapter of .*: lnlit import \S+ OUT"
    ):
        open_checkpoint(adapter())


# the start of a run


def begin(folder: Path, fused: bool = False, **settings) -> dict:
    lora = LoRA(**{"rank": 2, "alpha": 6.0, "targets": ("q_proj", "v_proj"), "adapter": str(folder)} | settings)
    decoder = tiny_decoder(packed(tiny_spec()) if fused else tiny_spec())
    add_lora(decoder, lora)
    return dict(start_of(decoder, lora))


def test_a_run_takes_factors_as_they_are(adapter):
    start = begin(adapter())
    assert list(start) == [module.removeprefix("model.") for module in MODULES]
    for module, both in start.items():
        for factor, tensor in zip("AB", both, strict=True):
            assert torch.equal(tensor, factors()[f"base_model.model.model.{module}.lora_{factor}.weight"])


def test_a_run_with_other_settings_is_told_the_right_ones(adapter):
    folder = adapter()
    told = (
        r"has rank 2 and alpha 6, this run {}. Set lora: \{{rank: 2, alpha: 6.0, targets: \[q_proj, v_proj\], adapter: "
    )
    with pytest.raises(UserError, match=told.format("4 and 6")):
        begin(folder, rank=4)
    with pytest.raises(UserError, match=told.format("2 and 32")):
        begin(folder, alpha=32.0)
    with pytest.raises(
        UserError, match=r"lacks an adapter of model.layers.0.self_attn.k_proj, unlike this run \(2 such"
    ):
        begin(folder, targets=("q_proj", "k_proj", "v_proj"))
    with pytest.raises(
        UserError, match=r"has an adapter of model.layers.0.self_attn.v_proj, .*It adapts q_proj, v_proj;"
    ):
        begin(folder, targets=("q_proj",))
    rank_stabilised = adapter({"use_rslora": True})
    with pytest.raises(UserError, match=r"has rank 2 and alpha 8.48528, .* alpha: 8.48528137\d+, targets"):
        begin(rank_stabilised)
    assert begin(rank_stabilised, alpha=6.0 * 2**0.5)
    with pytest.raises(UserError, match=r"/nowhere': no such file or folder"):
        begin(Path("/nowhere"))


def test_an_adapter_of_another_base_starts_no_run(adapter):
    wide = {f"{Q}.lora_A.weight": torch.ones(2, 40)}
    with pytest.raises(
        UserError, match=r"has factors \[2, 40\] and \[32, 2\] for layers.0.self_attn.q_proj, and the model"
    ):
        begin(adapter(tensors=wide))


def test_dora_starts_no_run_and_needs_a_length_for_each_row(adapter, tmp_path):
    lengths = {tensor_name(module, "magnitude_vector"): torch.ones(WIDTHS[module[-6:]][1]) for module in MODULES}
    with pytest.raises(
        UserError, match=r"lora.adapter: \S+ is of DoRA, which runs do not train. `lnlit import` merges"
    ):
        begin(adapter({"use_dora": True}, lengths))
    with pytest.raises(UserError, match=r"model.layers.0.self_attn.q_proj has \[3\] lengths of rows, and 32 rows"):
        import_model(
            adapter({"use_dora": True}, lengths | {f"{Q}.lora_magnitude_vector": torch.ones(3)}), tmp_path / "x"
        )
    with pytest.raises(UserError, match=r"lora_A is no factor"):
        import_model(adapter(tensors={f"{Q}.lora_A": ONE}), tmp_path / "x")


def test_a_rank_reads_its_part_of_the_sum(adapter, base):
    """Rows and columns of what is read are those of the whole, with and without DoRA."""
    lengths = {tensor_name(module, "magnitude_vector"): torch.ones(WIDTHS[module[-6:]][1]) for module in MODULES}
    for keys, more in (({}, {}), ({"use_dora": True}, lengths)):
        folder = adapter(keys, more)
        whole = dict(PeftFolder().weights(folder))
        plain = dict(open_checkpoint(base).weights(base))
        for name, tensor in PeftFolder().slices(folder):
            assert torch.equal(whole[name], plain[name]) != (name.removesuffix(".weight") in MODULES), name
            index = (slice(3, 9), slice(5, 20))[: len(tensor.shape)]
            torch.testing.assert_close(tensor[index], whole[name][index])


def test_a_matrix_beside_starts_no_run(adapter):
    with pytest.raises(UserError, match=r"lora.adapter: \S+ holds model.embed_tokens.weight of its base"):
        begin(adapter(tensors={EMBEDDING: torch.ones(258, 32)}))


def test_two_adapters_do_not_start_one(adapter):
    modules = [f"model.layers.{layer}.mlp.{name}" for layer in (0, 1) for name in ("gate_proj", "up_proj")]
    other = dict.fromkeys(factors()) | factors(modules)
    folder = adapter({"target_modules": ["gate_proj", "up_proj"]}, other)
    with pytest.raises(UserError, match=r"mlp.gate_proj and \S+mlp.up_proj each by itself, .*fuse_gate_up: false"):
        begin(folder, fused=True, targets=("gate_up_proj",))


def test_a_policy_is_told_that_its_start_is_no_folder(adapter, base):
    lora = LoRA(rank=2, alpha=6.0, adapter=str(adapter()))
    with pytest.raises(
        UserError, match=r"reference: null is the model to start from, which is no folder with lora.adapter"
    ):
        GRPO(str(base), AdamW(1e-3), lora=lora, kl=KL(0.1))
    GRPO(str(base), AdamW(1e-3), lora=lora, kl=KL(0.1), reference=str(base))
    GRPO(str(base), AdamW(1e-3), lora=lora, kl=KL(0.0))
