"""Parts of somebody else's go all the way: contract, search, distillation, training, policy, fusion."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import lightning as L
import pytest
import torch
from distillery import Distillery, weights
from experience_run import Run, finite, write
from torch import nn

from lnlit import registry
from lnlit.callbacks.throughput import flops_per_token
from lnlit.checkpoint.folder import save_folder
from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.data.sources import TextFileSource
from lnlit.data.text import TextSample
from lnlit.data.text_data import TextData
from lnlit.errors import UserError
from lnlit.interfaces import AttentionLayer, Workload, apply_rope, pool_kv_heads
from lnlit.models.build import build_decoder
from lnlit.models.generate import Sampling, generate
from lnlit.models.lineage import child_spec
from lnlit.models.parts import conversions, packed, short_name, stored
from lnlit.models.weights import canonical_weights
from lnlit.modules.distill import Distill
from lnlit.modules.optim import AdamW
from lnlit.modules.sft import SFT
from lnlit.search.library import Library
from lnlit.search.space import Candidates
from lnlit.search.targets import Deployment, Target
from lnlit.specs import NOOP, BlockSpec, PartSpec
from lnlit.stages.fuse import fuse
from lnlit.stages.library import build_library
from lnlit.stages.measure import measure
from lnlit.stages.realize import realize
from lnlit.stages.score import score
from lnlit.stages.solve import solve
from lnlit.testing import contracts
from lnlit.testing.plugin.ffn import Example as GEGLU
from lnlit.testing.tiny import attention, swiglu, tiny_decoder, tiny_folder, tiny_spec

MINE = PartSpec("mine", {"queries": 4, "groups": 2, "d_head": 8})
LINEAR = PartSpec("single_linear")


def geglu(width: int = 48) -> PartSpec:
    return PartSpec("geglu", {"intermediate_size": width})


FOREIGN = tiny_spec().replace(layers=(BlockSpec(MINE, geglu()), BlockSpec(MINE, geglu(40))))


class Mine(nn.Module, AttentionLayer):
    """Grouped attention, written without a look at ours."""

    def __init__(self, context, *, queries: int, groups: int, d_head: int):
        super().__init__()
        self.d_head = d_head
        self.wq = nn.Linear(context.hidden_size, queries * d_head, bias=False)
        self.wk = nn.Linear(context.hidden_size, groups * d_head, bias=False)
        self.wv = nn.Linear(context.hidden_size, groups * d_head, bias=False)
        self.wo = nn.Linear(queries * d_head, context.hidden_size, bias=False)

    def forward(self, x_BTD, attend, rope):
        q, k, v = (linear(x_BTD).unflatten(-1, (-1, self.d_head)) for linear in (self.wq, self.wk, self.wv))
        q, k = (apply_rope(heads, *rope[self.d_head]) for heads in (q, k))
        return self.wo(attend(q, k, v).flatten(2))

    @classmethod
    def kv_cache_shape(cls, args):
        return args["groups"], args["d_head"]

    @classmethod
    def smaller(cls, args, space):
        return [{**args, "groups": count} for count in space.fewer_heads(args["groups"])]

    @classmethod
    def conversions(cls, args, parent):
        if parent.layer is not cls:
            return ()
        return (lambda weights, scores: pool_kv_heads(weights, parent.args["groups"], args["groups"], ("wk", "wv")),)


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_added", {("attention", "mine"): Mine, ("ffn", "geglu"): GEGLU})


def test_they_keep_the_contract():
    contracts.check_layer("attention", "mine", MINE.args)
    contracts.check_layer("ffn", "geglu", geglu().args)


def test_they_are_known_by_what_they_say():
    assert (short_name("attention", MINE), short_name("ffn", geglu())) == (str(MINE), "geglu-i48")
    assert packed(FOREIGN) == FOREIGN  # nothing packs a GEGLU
    decoder = tiny_decoder(FOREIGN)
    assert flops_per_token(decoder, [10], 10) == 6 * sum(p.numel() for p in decoder.parameters() if p.dim() == 2)


def test_what_a_subclass_inherits_of_packing_does_not_make_it_another_part(monkeypatch):
    for name in ("swiglu", "swiglu_fused"):
        heir = type("Heir", (registry.get("ffn", name),), {})
        monkeypatch.setitem(registry._added, ("ffn", f"heir_of_{name}"), heir)
        spec = tiny_spec().replace(layers=(BlockSpec(NOOP, PartSpec(f"heir_of_{name}", swiglu().args)),) * 2)
        assert packed(spec) == stored(spec) == spec
        with pytest.raises(UserError, match="cannot be fused"):
            child_spec(spec.replace(layers=(spec.layers[0], BlockSpec(NOOP, swiglu()))), ((0, 1),))


def test_they_generate_as_they_compute():
    decoder = tiny_decoder(FOREIGN).eval()
    (found,) = generate(decoder, [[5, 6, 7]], Sampling(max_new_tokens=6, temperature=0.0), end_ids=())
    tokens = [5, 6, 7]
    for _ in range(6):
        tokens.append(int(decoder(torch.tensor([tokens]))[0, -1].argmax()))
    assert list(found.token_ids) == tokens[3:]


def test_fused_foreign_ffns_are_their_sum(tmp_path):
    spec = FOREIGN.replace(layers=(*FOREIGN.layers, *(BlockSpec(NOOP, geglu(width)) for width in (16, 24, 8))))
    plain = spec.replace(layers=(*spec.layers, BlockSpec(NOOP, swiglu(8)), BlockSpec(NOOP, swiglu(8))))
    folder = fuse(str(tiny_folder(tmp_path / "model", plain)), str(tmp_path / "fused"), leave_out=0)
    fused = read_spec(folder)
    assert [block.ffn for block in fused.layers[2:]] == [geglu(48), swiglu(16)]  # each with its own kind
    parent, child = (build_decoder(read_spec(f), "cpu") for f in (tmp_path / "model", folder))
    load_weights(parent, tmp_path / "model")
    load_weights(child, folder)
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0))
    apart = sum(block.add_ffn(x) - x for block in parent.layers[2:5])
    torch.testing.assert_close(child.layers[2].add_ffn(x) - x, apart, atol=1e-4, rtol=1e-4)


def test_they_are_candidates_and_say_what_they_are_made_of():
    space = Candidates(widths=(0.5,), width_multiple=8, ffn_stubs=("single_linear", asdict(geglu(16))))
    assert list(space.of("ffn", geglu())) == ["geglu-i24", "linear", "geglu-i16"]
    fewer = MINE.replace(groups=1)
    assert space.of("attention", MINE) == {str(fewer): fewer, "linear": PartSpec("single_linear"), "noop": NOOP}
    ours = Candidates(widths=(), attention_stubs=(asdict(attention(1)),), ffn_stubs=(asdict(swiglu(16)),))
    assert list(ours.of("attention", MINE)) == [str(fewer)]  # ours knows nothing of it
    assert ours.of("ffn", geglu()) == {"i16": swiglu(16)}  # gated too, so its matrices are the same
    (left_out,) = ours.check(FOREIGN)
    assert left_out.startswith("candidates.attention_stubs: gqa knows no way to be made of mine(queries=4")
    with pytest.raises(UserError, match=r"candidates.ffn_stubs: unknown ffn 'geglue'. Did you mean 'geglu'"):
        Candidates(ffn_stubs=("geglue",))
    with pytest.raises(UserError, match=r"candidates.ffn_stubs.args: 'geglu' needs 'intermediate_size'"):
        Candidates(ffn_stubs=("geglu",)).check(FOREIGN)


def test_a_gated_ffn_is_made_of_any_other_with_the_same_matrices():
    weights = {f"mlp.{name}_proj.weight": torch.randn(48, 32) for name in ("gate", "up")}
    weights["mlp.down_proj.weight"] = torch.randn(32, 48)
    made = conversions("ffn", swiglu(48), geglu(48))[0](weights, None)
    assert made.keys() == weights.keys() and all(torch.equal(made[name], weights[name]) for name in made)
    narrow = conversions("ffn", swiglu(48, fused=True), geglu(16))[0](weights, torch.arange(48.0))
    assert torch.equal(narrow["mlp.up_proj.weight"], weights["mlp.up_proj.weight"][32:])
    for wider in (geglu(64), geglu(48).replace(bias=True)):
        assert not conversions("ffn", swiglu(48), wider)


def test_two_candidates_of_one_name_are_refused():
    both = Candidates(ffn_stubs=(asdict(swiglu(48, fused=True)),))
    with pytest.raises(UserError, match=r"ffn_stubs: swiglu_fused\(.*\) and swiglu\(.*\) are both called 'i48'"):
        both.of("ffn", swiglu(48))


def quiet(steps: int) -> L.Trainer:
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", max_steps=steps, **off)


def saved(decoder, parent: Path, out: Path) -> Path:
    return save_folder(out, decoder.spec, canonical_weights(decoder), tokenizer_from=parent, provenance={})


def test_a_model_of_nothing_else_goes_through_search_and_training(tmp_path, text_file, documents):
    parent = tiny_folder(tmp_path / "parent", FOREIGN)
    sample = TextSample(TextFileSource(documents), rows=4, length=32)
    space = Candidates(widths=(0.5,), width_multiple=8)
    library = build_library(str(parent), sample, str(tmp_path / "library"), space)
    fewer = str(MINE.replace(groups=1))
    assert list(Library.open(library).layers[0].attention) == [str(MINE), fewer, "linear", "noop"]
    assert list(Library.open(library).layers[0].ffn) == ["geglu-i48", "geglu-i24", "linear", "noop"]

    distilled = Distillery(parent, library, text_file, tmp_path).fit("distilled", trainer={"max_steps": 4})
    before, after = weights(Library.open(library)), weights(distilled)
    assert all(not torch.equal(after[name], before[name]) for name in before if "norm" not in name)

    scores = score(str(parent), str(distilled.folder), sample, str(tmp_path / "scores.jsonl"), dtype="float32")
    costs = measure(str(distilled.folder), [Workload(1, 8, 4)], str(tmp_path / "costs.json"), "float32", timing=False)
    solution = solve(
        str(tmp_path / "solution.json"),
        library=str(distilled.folder),
        scores=str(scores),
        deployment=Deployment(str(costs), (Target("parameters", max=0.85, of_parent=True),)),
        solver="ratio_greedy",
    )
    child = realize(str(solution), str(distilled.folder), str(tmp_path / "child"))
    spec = read_spec(child)
    assert spec != FOREIGN and {part.type for _, _, part in spec.parts()} <= {"mine", "geglu", "single_linear", "noop"}

    optimizer = AdamW(1e-3, schedule="constant", warmup_ratio=0.0)
    texts = TextData(str(child), TextFileSource(str(text_file)), 32, 2)
    healing = Distill(str(child), str(parent), optimizer, cosine_weight=0.0)
    quiet(2).fit(healing, texts)
    healed = saved(healing.decoder, parent, tmp_path / "healed")
    tuning = SFT(str(healed), optimizer)
    quiet(2).fit(tuning, texts)
    tuned = saved(tuning.decoder, parent, tmp_path / "tuned")
    prompts = write(tmp_path / "prompts.jsonl", ["say one", "say two", "say three", "say four"])
    run = Run(tuned, prompts, tmp_path / "policy", steps=1).fit()
    assert finite(run.weights) and run.module.decoder.spec == spec
