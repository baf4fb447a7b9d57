"""The trainers of torchtune and litgpt for `bench_sft.py`, on the same rows.

Needs no lnlit, as litgpt has an environment of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def with_toggle(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"detailed thinking {row['thinking']}"}, *row["messages"]]


def torchtune(model: str, data: Path, steps: int, batch: int, length: int, dtype: str) -> dict[str, Any]:
    """torchtune's recipe for full fine-tuning, compiled, on its packed data set, with its Llama of the same size."""
    import importlib.util
    import sysconfig

    import torchao.quantization
    from omegaconf import OmegaConf

    # The recipe imports these two, which torchao has removed since; only quantised models use them.
    for name in ("int4_weight_only", "int8_dynamic_activation_int4_weight"):
        setattr(torchao.quantization, name, None)
    file = Path(sysconfig.get_paths()["purelib"]) / "recipes" / "full_finetune_single_device.py"
    spec = importlib.util.spec_from_file_location("recipe", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json.loads((Path(model) / "config.json").read_text())
    sizes = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": length,
    }
    with tempfile.TemporaryDirectory() as out:
        checkpoint = {"checkpoint_dir": model, "checkpoint_files": ["model.safetensors"], "output_dir": out}
        asked = {
            "output_dir": out,
            "model": {"_component_": "torchtune.models.llama3_2.llama3_2", **sizes},
            "tokenizer": {"_component_": "sft_peers.NoTokenizer"},
            "dataset": {"_component_": "sft_peers.packed", "model": model, "data": str(data), "length": length},
            "checkpointer": {
                "_component_": "torchtune.training.FullModelHFCheckpointer",
                "model_type": "LLAMA3_2",
                "recipe_checkpoint": None,
                **checkpoint,
            },
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-5, "fused": True},
            "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
            "metric_logger": {"_component_": "sft_peers.StepClock"},
            **{"seed": 0, "shuffle": False, "batch_size": batch, "epochs": 1, "gradient_accumulation_steps": 1},
            **{"max_steps_per_epoch": steps, "clip_grad_norm": 1.0, "compile": True, "dtype": dtype},
            **{"device": "cpu", "resume_from_checkpoint": False, "optimizer_in_bwd": False, "log_every_n_steps": 1},
            **{"enable_activation_checkpointing": False, "enable_activation_offloading": False},
        }
        cfg = OmegaConf.create(asked)
        recipe = module.FullFinetuneRecipeSingleDevice(cfg=cfg)
        recipe.save_checkpoint = lambda epoch: None  # measured are steps
        recipe.setup(cfg=cfg)
        recipe.train()
        return {"steps_s": recipe._metric_logger.steps}


class NoTokenizer:
    """What torchtune's recipe asks of a tokenizer when its data set needs none."""

    pad_id = 0


class StepClock:
    """A metric logger for torchtune that notes when it is called: once a step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.end = time.perf_counter()

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        last, self.end = self.end, time.perf_counter()
        self.steps.append(self.end - last)

    def log_config(self, *args: Any) -> None: ...


def packed(tokenizer: Any, model: str, data: str, length: int) -> Any:
    """torchtune's packed data set of the rows."""
    from torchtune.datasets import PackedDataset
    from transformers import AutoTokenizer

    template = AutoTokenizer.from_pretrained(model)
    samples = []
    for line in filter(None, Path(data).read_text().split("\n")):
        chat = with_toggle(json.loads(line))
        tokens = template.apply_chat_template(chat, return_dict=False)
        prompt = template.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=False)
        samples.append({"tokens": tokens, "labels": [-100] * len(prompt) + tokens[len(prompt) :]})
    return PackedDataset(samples, max_seq_len=length, padding_idx=0)  # type: ignore[arg-type]


def litgpt(model: str, data: Path, steps: int, rows: int) -> dict[str, Any]:
    """litgpt's full fine-tuning. It pads, so that a step is timed with the number of its real tokens."""
    import shutil

    from litgpt.args import EvalArgs, TrainArgs  # pyright: ignore[reportMissingImports]
    from litgpt.data import JSON  # pyright: ignore[reportMissingImports]
    from litgpt.finetune import full  # pyright: ignore[reportMissingImports]
    from litgpt.model import GPT  # pyright: ignore[reportMissingImports]
    from litgpt.scripts.convert_hf_checkpoint import (  # pyright: ignore[reportMissingImports]
        convert_hf_checkpoint,
    )

    begins: list[float] = []
    tokens: list[int] = []
    forward = GPT.forward

    def timed(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            begins.append(time.perf_counter())
            tokens.append(int((ids != 0).sum()))  # it pads with 0, an end of text that no row holds
        return forward(self, ids, *args, **kwargs)

    GPT.forward = timed
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = Path(shutil.copytree(model, folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct"))
        convert_hf_checkpoint(checkpoint)
        sys.argv = ["litgpt", str(checkpoint)]  # it reads them again to note its settings
        chats = [json.loads(line)["messages"] for line in data.read_text().split("\n") if line]
        (folder / "rows.json").write_text(
            json.dumps([{"instruction": chat[-2]["content"], "output": chat[-1]["content"]} for chat in chats])
        )
        full.setup(
            checkpoint,
            folder / "out",
            precision="bf16-mixed",
            data=JSON(folder / "rows.json", mask_prompt=True, prompt_style="smollm2", num_workers=0),
            train=TrainArgs(
                global_batch_size=rows,
                micro_batch_size=rows,
                max_steps=steps + 1,
                lr_warmup_steps=1,
                epochs=1,
            ),
            eval=EvalArgs(interval=1000, max_new_tokens=1, max_iters=1, final_validation=False),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5, "fused": True}},
        )
    whole = [after - begin for begin, after in pairwise(begins)]
    return {"steps_s": whole, "tokens": tokens[: len(whole)]}
