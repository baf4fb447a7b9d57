"""FFN Fusion is exact algebra: equal to the parallel sum, whatever the widths, gains, biases and packing."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import silu

from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.checkpoint.readers import obstacles
from lnlit.errors import UserError
from lnlit.models import fusion
from lnlit.models.build import build_decoder
from lnlit.models.fusion import FusionPlan, attention_free_runs, plan_fusion
from lnlit.models.lineage import EMPTY, child_spec, child_weights, hidden_pairs
from lnlit.models.surgery import fuse_ffns
from lnlit.models.weights import canonical_weights, fill
from lnlit.specs import NOOP, BlockSpec, ModelSpec, PartSpec
from lnlit.testing.tiny import attention, swiglu, tiny_decoder, tiny_spec

FULL = BlockSpec(attention(), swiglu())


def lone(width: int, fused: bool = False, bias: bool = False) -> BlockSpec:
    part = swiglu(width, fused)
    return BlockSpec(NOOP, part.replace(bias=True) if bias else part)


def spec_of(*layers: BlockSpec) -> ModelSpec:
    return tiny_spec().replace(layers=layers)


RUN = spec_of(FULL, lone(48), lone(16), EMPTY, lone(33), lone(64), FULL)


def parent_of(spec: ModelSpec):
    """Random weights with a distinct gain in every norm, and biases that are not zero."""
    decoder = tiny_decoder(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    return decoder


def child_of(decoder, lineage, norm="own"):
    child = build_decoder(child_spec(decoder.spec, lineage), "cpu")
    fill(child, child_weights(decoder.spec, lineage, canonical_weights(decoder), norm), "child")
    return child


def in_parallel(decoder, groups, norm="own"):
    """Logits of the parent when the layers of each group see the same input: FFN Fusion, equation 5."""

    def forward(tokens):
        x = decoder.embed_tokens(tokens)
        inside = {index for group in groups for index in group}
        for group in sorted([*groups, *((i,) for i in range(len(decoder.layers)) if i not in inside)]):
            if len(group) == 1:
                x = states(decoder, group[0], x, tokens.shape)
                continue
            blocks = [decoder.layers[index] for index in group]
            norms = [(block if norm == "own" else blocks[-1]).post_attention_layernorm for block in blocks]
            x = x + sum(block.mlp(own(x)) for block, own in zip(blocks, norms, strict=True))
        return torch.nn.functional.linear(decoder.norm(x), decoder.head_weight)

    return forward


def states(decoder, index, x, shape):
    """One block of the decoder on `x`, through a forward pass of the decoder that starts there."""
    kept = decoder.layers, decoder.embed_tokens, decoder.norm
    decoder.layers = torch.nn.ModuleList([kept[0][index]])
    hook = kept[1].register_forward_hook(lambda *_: x)
    decoder.norm = torch.nn.Identity()
    try:
        return decoder(torch.zeros(shape, dtype=torch.long), read_out=lambda hidden, _: hidden)
    finally:
        decoder.layers, decoder.embed_tokens, decoder.norm = kept
        hook.remove()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["own", "last"])
@torch.no_grad()
def test_the_fused_ffn_is_the_sum_of_its_ffns(norm, bias):
    generator = torch.Generator().manual_seed(0)
    ffns = []
    for number, width in enumerate((40, 7, 24)):
        shapes = {"gate_proj": (width, 32), "up_proj": (width, 32), "down_proj": (32, width)}
        ffn = {f"mlp.{n}.weight": torch.randn(s, generator=generator) / 6 for n, s in shapes.items()}
        if bias and number != 1:  # one without, which counts as zeros
            ffn |= {f"mlp.{n}.bias": torch.randn(s[0], generator=generator) for n, s in shapes.items()}
        ffns.append(ffn | {"post_attention_layernorm.weight": torch.randn(32, generator=generator)})

    def run(ffn, gain, x):
        x = torch.nn.functional.rms_norm(x, (32,), gain, 1e-5)
        gate, up = (
            torch.nn.functional.linear(x, ffn[f"mlp.{n}.weight"], ffn.get(f"mlp.{n}.bias"))
            for n in ("gate_proj", "up_proj")
        )
        return torch.nn.functional.linear(silu(gate) * up, ffn["mlp.down_proj.weight"], ffn.get("mlp.down_proj.bias"))

    gains = [ffn["post_attention_layernorm.weight"] for ffn in ffns]
    x = torch.randn(50, 32, generator=generator)
    expected = sum(run(f, g if norm == "own" else gains[-1], x) for f, g in zip(ffns, gains, strict=True))
    fused = fuse_ffns(ffns, norm)
    found = run(fused, fused["post_attention_layernorm.weight"], x)
    assert (found - expected).abs().max() <= 1e-5
    assert fused["mlp.up_proj.weight"].shape == (71, 32) and fused["mlp.down_proj.weight"].shape == (32, 71)
    if norm == "own":
        assert torch.equal(fused["post_attention_layernorm.weight"], torch.ones(32))


@pytest.mark.parametrize("layers", [(False, False), (True, True), (True, False)], ids=["plain", "packed", "mixed"])
@pytest.mark.parametrize("norm", ["own", "last"])
@torch.no_grad()
def test_a_fused_decoder_is_the_decoder_with_its_run_in_parallel(norm, layers):
    first, second = layers
    run = (lone(48, first), lone(16, second, bias=True), EMPTY, lone(33, first, bias=True), lone(64, second))
    decoder = parent_of(spec_of(FULL, *run, FULL))
    plan = plan_fusion(decoder.spec, norm=norm)
    assert plan == FusionPlan(((1, 2, 4),), (5,), norm)
    child = child_of(decoder, fusion.fused(decoder.spec, plan), norm)
    kind = "swiglu_fused" if first and second else "swiglu"
    assert child.spec.layers[1] == BlockSpec(NOOP, PartSpec(kind, {"intermediate_size": 97, "bias": True}))
    assert len(child.spec.layers) == 4
    tokens = torch.randint(0, 256, (2, 16))
    expected = in_parallel(decoder, plan.groups, norm)(tokens)
    assert (child(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    other = in_parallel(decoder, plan.groups, "last" if norm == "own" else "own")(tokens)
    assert (child(tokens) - other).abs().max() > 1e-2  # the two norms are really two


@torch.no_grad()
def test_the_gain_is_folded_before_rounding_to_half_precision():
    weight = torch.tensor([[1.0078125, 3.0]], dtype=torch.bfloat16)
    gain = torch.tensor([1.0078125, 0.333984375], dtype=torch.bfloat16)
    ffn = {f"mlp.{name}.weight": weight for name in ("gate_proj", "up_proj")}
    ffn |= {"mlp.down_proj.weight": weight.T, "post_attention_layernorm.weight": gain}
    fused = fuse_ffns([ffn, ffn])
    assert fused["mlp.gate_proj.weight"].dtype == torch.bfloat16
    assert torch.equal(fused["mlp.gate_proj.weight"][0], (weight.float() * gain.float())[0].bfloat16())


def test_runs_are_of_lone_swiglu_layers_and_empty_ones_are_transparent():
    linear = BlockSpec(NOOP, PartSpec("single_linear"))
    layers = (EMPTY, lone(8), FULL, lone(8), EMPTY, EMPTY, lone(8, fused=True), linear, lone(8), lone(8))
    spec = spec_of(*layers, BlockSpec(attention(), NOOP), BlockSpec(PartSpec("single_linear"), swiglu(8)), lone(8))
    assert attention_free_runs(spec) == [(1,), (3, 6), (8, 9), (12,)]


@pytest.mark.parametrize(("leave_out", "groups", "left"), [(0, [(3, 4)], ()), (1, [], (4,)), (2, [], (3, 4))])
def test_short_runs_stay_as_they_are(leave_out, groups, left):
    spec = spec_of(FULL, lone(8), FULL, lone(8), lone(8), FULL)
    plan = plan_fusion(spec, leave_out=leave_out)
    assert (list(plan.groups), plan.left_out) == (groups, left)


@pytest.mark.parametrize(
    ("caps", "groups"),
    [
        ({"max_width": 10}, [(0, 1, 2), (3, 4, 5)]),  # two FFNs of 9, not one of 10 and one of 8
        ({"max_width": 9}, [(0, 1, 2), (3, 4, 5)]),
        ({"max_width": 8}, [(0, 1), (2, 3), (4, 5)]),
        ({"max_width": 5}, []),
        ({"max_bytes": 2 * (3 * 32 * 9 + 32)}, [(0, 1, 2), (3, 4, 5)]),
        ({"max_bytes": 2 * (3 * 32 * 9 + 32) - 1}, [(0, 1), (2, 3), (4, 5)]),
        ({"max_bytes": 4 * (3 * 32 * 9 + 32), "bytes_per_weight": 4}, [(0, 1, 2), (3, 4, 5)]),
        ({"max_width": 10, "max_bytes": 2 * (3 * 32 * 6 + 32)}, [(0, 1), (2, 3), (4, 5)]),
    ],
)
def test_caps_split_a_run_into_few_and_even_ffns(caps, groups):
    spec = spec_of(*[lone(3)] * 7)
    assert list(plan_fusion(spec, **caps).groups) == groups


def test_an_ffn_that_is_too_wide_by_itself_stays_alone():
    spec = spec_of(lone(4), lone(4), lone(40), lone(4), lone(4), lone(4))
    assert plan_fusion(spec, max_width=10).groups == ((0, 1), (3, 4))


def test_what_bytes_cap_is_what_the_file_holds():
    spec = spec_of(lone(8, bias=True), lone(8), lone(8))
    plan = plan_fusion(spec, max_bytes=4 * (3 * 32 * 16 + 2 * 16 + 2 * 32), bytes_per_weight=4)
    child = child_spec(spec, fusion.fused(spec, plan))
    size = sum(p.numel() for p in build_decoder(child).layers[0].parameters()) * 4
    assert plan.groups == ((0, 1),) and size == 4 * (3 * 32 * 16 + 2 * 16 + 2 * 32)
    assert not plan_fusion(spec, max_bytes=size - 1, bytes_per_weight=4).groups


@torch.no_grad()
def test_removal_keeps_the_last_and_reversal_permutes():
    decoder = parent_of(RUN)
    plan = plan_fusion(RUN)
    assert fusion.fused(RUN, plan) == ((0,), (1, 2, 4), (5,), (6,))
    assert fusion.removed(RUN, plan) == ((0,), (4,), (5,), (6,))
    assert fusion.in_reverse(RUN, plan) == ((0,), (4,), (2,), (1,), (5,), (6,))
    assert hidden_pairs(((), *fusion.fused(RUN, plan))) == [(1, 0), (2, 4), (3, 5), (4, 6)]
    assert hidden_pairs(fusion.removed(RUN, plan)) == [(0, 0), (1, 4), (2, 5), (3, 6)]
    assert hidden_pairs(fusion.in_reverse(RUN, plan)) == [(0, 0), (3, 4), (4, 5), (5, 6)]
    child = child_of(decoder, fusion.in_reverse(RUN, plan))
    x = decoder.embed_tokens(torch.arange(20)[None])
    for here, there in ((1, 4), (2, 2), (3, 1)):
        assert torch.equal(states(child, here, x, (1, 20)), states(decoder, there, x, (1, 20)))
    short = child_of(decoder, fusion.removed(RUN, plan))
    assert torch.equal(states(short, 1, x, (1, 20)), states(decoder, 4, x, (1, 20)))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[1, 2], [2, 4]], r"overlaps another group at layer 2"),
        ([[1, 2, 4], [1, 2, 4]], r"overlaps another group at layer 1"),
        ([[0, 1]], r"layer 0 \(gqa.*is not a lone FFN that can be fused"),
        ([[1, 4]], r"layer 2 .*is not in the group"),
        ([[1, 2, 3, 4]], r"layer 3 \(noop\(\), noop\(\)\) is not a lone FFN"),
        ([[5]], r"two or more layers"),
        ([[2, 1]], r"ascending order"),
        ([[5, 9]], r"layers 0 to 6"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(groups, message):
    plan = FusionPlan.from_json({"groups": groups})
    with pytest.raises(UserError, match=message):
        fusion.fused(RUN, plan)


@pytest.mark.parametrize("lineage", [((0,), (1, 2), (2, 4)), ((0,), (0,)), ((0, 1),), ((7,),)])
def test_a_lineage_with_two_claims_or_a_wrong_layer_is_refused(lineage):
    with pytest.raises(UserError, match=r"claimed twice|cannot be fused|layers 0 to 6"):
        child_spec(RUN, lineage)


def test_weights_that_end_early_are_an_error():
    decoder = parent_of(RUN)
    weights = [(n, t) for n, t in canonical_weights(decoder) if n != "model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"layers 1, 2, 4\) are incomplete"):
        list(child_weights(RUN, fusion.fused(RUN, plan_fusion(RUN)), weights))


def test_a_plan_is_plain_data():
    plan = plan_fusion(RUN, norm="last")
    assert FusionPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(UserError, match=r"plan: unknown key 'grops'. Did you mean 'groups'"):
        FusionPlan.from_json({"grops": []})
    with pytest.raises(UserError, match=r"plan.norm: expected one of own, last, got 'mean'"):
        FusionPlan.from_json({"groups": [], "norm": "mean"})
    with pytest.raises(UserError, match=r"plan\.groups\[0\]\[1\]: expected a whole number, 0 or more, got '2'"):
        FusionPlan.from_json({"groups": [[1, "2"]]})
    with pytest.raises(UserError, match="leave_out must be at least 0, got -1"):
        plan_fusion(RUN, leave_out=-1)


@torch.no_grad()
def test_a_fused_model_survives_a_folder(tmp_path):
    decoder = parent_of(RUN)
    lineage = fusion.fused(RUN, plan_fusion(RUN))
    spec = child_spec(RUN, lineage)
    weights = child_weights(RUN, lineage, canonical_weights(decoder))
    folder = save_folder(tmp_path / "fused", spec, weights, tokenizer_from=None, provenance={})
    assert read_spec(folder) == spec and obstacles(spec)["vLLM"] == []
    config = json.loads((folder / "config.json").read_text())
    assert config["block_configs"][1]["ffn"]["intermediate_size"] == 48 + 16 + 33
    again = build_decoder(spec, "cpu")
    load_weights(again, folder)
    tokens = torch.randint(0, 256, (1, 12))
    assert torch.equal(again(tokens), child_of(decoder, lineage)(tokens))


def test_fusing_widths_that_ffn_mult_can_say_gives_widths_that_it_can_say():
    spec = spec_of(BlockSpec(attention(), swiglu(256)), *[lone(256), lone(768), lone(512)] * 2)
    fused = child_spec(spec, fusion.fused(spec, plan_fusion(spec)))
    assert [block.ffn.args["intermediate_size"] for block in fused.layers] == [256, 2560, 512]
    assert obstacles(spec)["mlx-lm"] == obstacles(fused)["mlx-lm"] == []
