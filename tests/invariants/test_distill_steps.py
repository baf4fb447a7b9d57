"""A step of distillation is the same however its documents are laid out, and equals its definition."""

from functools import partial
from pathlib import Path

import pytest
import torch
from one_step import documents, rows, step
from torch import Tensor
from torch.nn import functional as F
from warm import torchrun

from lnlit.checkpoint.formats import read_spec
from lnlit.checkpoint.load import load_weights
from lnlit.data.packing import collate, pack_best_fit
from lnlit.models.build import build_decoder
from lnlit.models.decoder import Decoder
from lnlit.modules.distill import Distill
from lnlit.modules.lit_model import Runtime
from lnlit.specs import NOOP
from lnlit.testing.tiny import swiglu, tiny_folder, tiny_spec

LM, TEMPERATURE = 0.5, 2.0


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """(child, parent): the child lacks an attention and has a narrower FFN."""
    folder = tmp_path_factory.mktemp("models")
    parent = tiny_spec().replace(tie_embeddings=False)
    first, second = parent.layers
    child = parent.replace(layers=(first.replace(ffn=swiglu(16)), second.replace(attention=NOOP)))
    return tiny_folder(folder / "child", child, seed=1), tiny_folder(folder / "parent", parent, seed=2)


def distill(models: tuple[Path, Path], batches, runtime: Runtime = Runtime(), **settings):
    method = partial(Distill, teacher=str(models[1]), lm_weight=LM, temperature=TEMPERATURE, runtime=runtime)
    return step(models[0], batches, method=method, **settings)


@pytest.fixture(scope="module")
def reference(models):
    """All documents unpacked in one micro-batch on one rank."""
    return distill(models, [collate(rows(documents()), 32, pad_id=0)])


def assert_same(result, reference) -> None:
    (loss, gradients), (expected_loss, expected) = result, reference
    assert abs(loss - expected_loss) <= 1e-5 * abs(expected_loss)
    assert gradients.keys() == expected.keys()
    worst = max(((gradients[n] - expected[n]).norm() / expected[n].norm()).item() for n in expected)
    assert worst <= 1e-5, worst


def whole(folder: Path) -> Decoder:
    decoder = build_decoder(read_spec(folder), "cpu")
    load_weights(decoder, folder)
    return decoder


def seen(decoder: Decoder, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(logits, block outputs) by forward hooks, another way than the one under test."""
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, i, out: outputs.append(out)) for block in decoder.layers]
    logits = decoder(tokens)
    for handle in handles:
        handle.remove()
    return logits[0], [output[0] for output in outputs]


def test_loss_and_gradients_equal_the_definition_document_by_document(models, reference):
    child, parent = whole(models[0]), whole(models[1])
    total, count = torch.zeros(()), 0
    for document in documents():
        tokens = torch.tensor([document.tokens])
        learned = torch.tensor([*document.loss_mask[1:], False])
        labels = tokens[0].roll(-1)[learned]
        (logits, mine), (target, theirs) = seen(child, tokens), seen(parent, tokens)
        soft, soft_target = (torch.log_softmax(x[learned] / TEMPERATURE, -1) for x in (logits, target))
        kl = F.kl_div(soft, soft_target.detach(), reduction="sum", log_target=True) * TEMPERATURE**2
        cosine = sum(
            (1 - F.cosine_similarity(a, b.detach(), -1))[learned].sum() for a, b in zip(mine, theirs, strict=True)
        )
        total = total + kl + cosine + LM * F.cross_entropy(logits[learned], labels, reduction="sum")
        count += int(learned.sum())
    (total / count).backward()
    assert_same(((total / count).item(), {n: p.grad for n, p in child.named_parameters()}), reference)


def test_packing_accumulation_padding_and_recomputation_change_nothing(models, reference):
    made = documents()
    packed = [[made[i] for i in pack] for pack in pack_best_fit([len(d) for d in made], 64)]
    assert_same(distill(models, [collate(packed, 64, pad_id=0)]), reference)
    halves = [collate(rows(made[i : i + 2]), 48, pad_id=9, padding_side="left") for i in range(0, 8, 2)]
    recomputing = Runtime(activation_checkpointing=True)
    assert_same(distill(models, halves, recomputing, accumulate=4), reference)


@pytest.fixture(scope="module")
def of_two_ranks(models, tmp_path_factory) -> Path:
    """Where the same step of two ranks is, under each strategy."""
    out = tmp_path_factory.mktemp("two_ranks") / "step"
    script = Path(__file__).with_name("two_ranks.py")
    torchrun(2, script, "ddp,fsdp2,tp", models[0], out, models[1], cwd=out.parent, timeout=200)
    return out


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "tp"])
def test_two_gloo_ranks_equal_one(reference, strategy, of_two_ranks):
    result = torch.load(of_two_ranks.with_name(f"step.{strategy}"), weights_only=True)
    assert_same((result["loss"], result["gradients"]), reference)
