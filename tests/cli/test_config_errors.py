"""Every mistake in a configuration is one line on stderr that names the place and the way out, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

OPTIMIZER = "    optimizer:\n      learning_rate: 0.001\n"

IN_FILE = {
    "misspelt top-level key": (
        ("trainer:", "trianer:"),
        "run.yaml:1: configuration: unknown key 'trianer'. Did you mean 'trainer'? Allowed: check_memory, ckpt_path, "
        "data, model, ",
    ),
    "misspelt trainer key": (
        ("max_steps", "max_step"),
        "run.yaml:2: trainer: unknown key 'max_step'. Did you mean 'max_steps'? Allowed: accelerator, ",
    ),
    "misspelt init_args": (
        ("SFT\n  init_args:", "SFT\n  init_arg:"),
        "run.yaml:10: model: unknown key 'init_arg'. Did you mean 'init_args'? Allowed: class_path, dict_kwargs, ",
    ),
    "arguments beside class_path": (
        ("SFT\n", "SFT\n  model: x\n"),
        "run.yaml:10: model: unknown key 'model'. Allowed: class_path, dict_kwargs, init_args. A class's own arguments",
    ),
    "misspelt argument": (
        ("sequence_length", "sequence_lenght"),
        "run.yaml:22: data.init_args: unknown key 'sequence_lenght'. Did you mean 'sequence_length'? Allowed: ",
    ),
    "misspelt key of a dataclass": (
        ("learning_rate", "learnin_rate"),
        "run.yaml:13: model.init_args.optimizer: unknown key 'learnin_rate'. Did you mean 'learning_rate'? Allowed: ",
    ),
    "misspelt key of a nested class": (
        ("paths:", "path:"),
        "run.yaml:21: data.init_args.train.init_args: unknown key 'path'. Did you mean 'paths'? Allowed: columns, "
        "paths.",
    ),
    "misspelt key in a list of dataclasses": (
        ("      class_path: jsonl\n      init_args:\n        paths", "      - source: jsonl\n        wieght"),
        "run.yaml:20: data.init_args.train[0]: unknown key 'wieght'. Did you mean 'weight'? Allowed: epochs, rows, ",
    ),
    "wrong type": (
        ("max_steps: 2", "max_steps: two"),
        "run.yaml:2: trainer.max_steps: expected int, got 'two'",
    ),
    "wrong type in a dataclass": (
        ("learning_rate: 0.001", "learning_rate: fast"),
        "run.yaml:13: model.init_args.optimizer.learning_rate: expected float, got 'fast'",
    ),
    "not one of the choices": (
        ("    sequence_length", "    too_long: trunkate\n    sequence_length"),
        "run.yaml:22: data.init_args.too_long: expected one of 'truncate', ",
    ),
    "a number where a mapping belongs": (
        (OPTIMIZER, "    optimizer: 3\n"),
        "run.yaml:12: model.init_args.optimizer: expected a mapping, got 3",
    ),
    "missing argument": (
        ("    micro_batch_size: 2\n", ""),
        "run.yaml:16: data.init_args: the key 'micro_batch_size' is missing.",
    ),
    "missing argument of a dataclass": (
        ("learning_rate: 0.001", "eps: 0.001"),
        "run.yaml:12: model.init_args.optimizer: the key 'learning_rate' is missing.",
    ),
    "unknown class": (
        ("class_path: SFT", "class_path: STF"),
        "run.yaml:9: model.class_path: unknown method 'STF'. Did you mean 'SFT'? Allowed: ",
    ),
    "class that is not in its module": (
        ("class_path: SFT", "class_path: lnlit.modules.sft.STF"),
        "run.yaml:9: model.class_path: cannot import 'lnlit.modules.sft.STF': module 'lnlit.modules.sft' has no "
        "attribute 'STF'. Did you mean 'SFT'?",
    ),
    "class of the wrong kind": (
        ("class_path: SFT", "class_path: lnlit.data.datamodule.ChatData"),
        "run.yaml:9: model.class_path: 'lnlit.data.datamodule.ChatData' is not a LightningModule. Allowed: ",
    ),
    "unknown registry name": (
        ("class_path: jsonl", "class_path: jsnl"),
        "run.yaml:19: data.init_args.train.class_path: unknown source 'jsnl'. Did you mean 'jsonl'? Allowed: difficul",
    ),
    "code from outside": (
        ("class_path: SFT", "class_path: os.system"),
        "run.yaml:9: model.class_path: 'os.system' may not be named here. A configuration may name classes of lnlit, ",
    ),
    "unpickling through torch": (
        ("class_path: SFT", "class_path: torch.load"),
        "run.yaml:9: model.class_path: 'torch.load' may not be named here.",
    ),
    "YAML that runs code": (
        ("0.001", "!!python/object/apply:os.getcwd []"),
        "run.yaml:13: is not valid YAML: could not determine a constructor for the tag",
    ),
    "broken YAML": (
        ("trainer:", "trainer: ["),
        "run.yaml:3: is not valid YAML: expected ',' or ']'",
    ),
    "sampler that cannot resume": (
        ("  logger: false", "  logger: false\n  use_distributed_sampler: true"),
        "trainer.use_distributed_sampler: got True; allowed: false",
    ),
}


@pytest.mark.parametrize(("swap", "message"), IN_FILE.values(), ids=IN_FILE.keys())
def test_mistake_in_a_file(lnlit, config, swap, message):
    path = config(swap)
    code, _, err = lnlit("fit", "--config", path)
    line = err.replace(f"{path.parent}/", "")
    assert (code, line.count("\n")) == (2, 1), err
    assert line.startswith(f"error: {message}"), line


ON_COMMAND_LINE = {
    "abbreviated option": (["--trainer.max_step", "3"], "command line: trainer: unknown key 'max_step'. Did you mean"),
    "unknown option": (
        ["--fast"],
        "command line: configuration: unknown key 'fast'. Allowed: check_memory, ckpt_path, data, model, ",
    ),
    "misspelt argument": (
        ["--model.init_args.optimiser.eps", "1"],
        "command line: model.init_args: unknown key 'optimiser'. Did you mean 'optimizer'?",
    ),
    "misspelt short argument": (
        ["--data.sed=3"],
        "command line: data.init_args: unknown key 'sed'. Did you mean 'seed'?",
    ),
    "wrong type": (["--data.seed=x"], "command line: data.init_args.seed: expected int, got 'x'"),
    "unknown class": (["--model", "STF"], "command line: model.class_path: unknown method 'STF'. Did you mean 'SFT'?"),
    "one of several kinds of choice": (
        ["--trainer.precision", "bf16-mixd"],
        "command line: trainer.precision: expected one of 64, 32, 16, 'transformer-engine', ",
    ),
    "what the trainer refuses": (["--trainer.strategy", "fsdq"], "trainer: You selected an invalid strategy name"),
    "devices that are not there": (["--trainer.devices", "0"], "trainer: `Trainer(devices="),
    "stray word": (["stray"], "unrecognized arguments: stray"),
    "best checkpoint": (["--ckpt_path", "best"], "ckpt_path: which checkpoint is the best is known to the process"),
    "not a checkpoint": (
        ["--ckpt_path", __file__],
        f"ckpt_path: {__file__} is no checkpoint that a run can go on from.",
    ),
    "a folder of none": (
        ["--ckpt_path", "."],
        "ckpt_path: . is no checkpoint that a run can go on from. It is a folder",
    ),
    "missing checkpoint": (["--ckpt_path", "gone.ckpt"], "ckpt_path: there is no file or folder 'gone.ckpt'."),
    "missing file": (["--config", "gone.yaml"], "--config: there is no file 'gone.yaml'; the folder holds run.yaml."),
    "missing folder": (
        ["--config", "no/gone.yaml"],
        "--config: there is no file 'no/gone.yaml'; there is no folder 'no'",
    ),
    "no file": (["--config"], "--config: expected a file name. Write --config FILE.yaml."),
    "unknown source": (["--data.train", "jsnl"], "command line: data.init_args.train"),
}


@pytest.mark.parametrize(("options", "message"), ON_COMMAND_LINE.values(), ids=ON_COMMAND_LINE.keys())
def test_mistake_on_the_command_line(lnlit, config, options, message):
    code, _, err = lnlit("fit", "--config", config(), *options)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith(f"error: {message}"), err


def test_a_missing_model_lists_the_models(lnlit, config):
    path = config()
    text = path.read_text()
    path.write_text(text[: text.index("model:")] + text[text.index("data:") :])
    code, _, err = lnlit("fit", "--config", path)
    assert code == 2 and err.startswith("error: configuration: the key 'model' is missing. Allowed: "), err
    assert " SFT" in err


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "3\n"])
def test_a_file_that_is_no_configuration(lnlit, tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    code, _, err = lnlit("fit", "--config", "odd.yaml")
    assert (code, err.count("\n")) == (2, 1), err


def test_a_binary_file(lnlit, tmp_path):
    (tmp_path / "odd.yaml").write_bytes(b"\xff\xfe\x00")
    code, _, err = lnlit("fit", "--config", "odd.yaml")
    assert (code, err) == (2, "error: odd.yaml: is not text; expected a YAML file.\n")


def test_the_file_with_the_mistake_is_named_among_several(lnlit, config, tmp_path):
    (tmp_path / "second.yaml").write_text("# a comment\ndata:\n  init_args:\n    sed: 3\n")
    code, _, err = lnlit("fit", "--config", config(), "--config", "second.yaml")
    assert code == 2 and err.startswith("error: second.yaml:4: data.init_args: unknown key 'sed'."), err


SECOND_MISTAKES = {
    "dotted key": (
        ("trainer:\n  max_steps: 2", "trainer.max_steps: 2\ntrainer:"),
        "run.yaml:22: data.init_args: unknown key 'sequence_lenght'.",
    ),
    "dotted key of a class": (
        ("    optimizer:\n      learning_rate: 0.001", "    optimizer.learning_rate: 0.001"),
        "run.yaml:21: data.init_args: unknown key 'sequence_lenght'.",
    ),
    "a value below a dotted key": (
        ("    optimizer:\n      learning_rate: 0.001", "    optimizer.learning_rate: fast"),
        "run.yaml:12: model.init_args.optimizer.learning_rate: expected float, got 'fast'",
    ),
    "what is added to a list": (
        ("  max_steps: 2", "  max_steps: 2\n  callbacks+: {class_path: SkipBadSteps}"),
        "run.yaml:23: data.init_args: unknown key 'sequence_lenght'.",
    ),
    "a mistake in what is added to a list": (
        ("  max_steps: 2", "  max_steps: 2\n  callbacks+: {class_path: SkipBadSteps, init_args: {x: 1}}"),
        "run.yaml:3: trainer.callbacks[0].init_args: unknown key 'x'.",
    ),
    "adding to what is no list": (
        ("  max_steps: 2", "  max_steps+: 2"),
        "run.yaml:2: trainer: unknown key 'max_steps+'. Did you mean 'max_steps'?",
    ),
}


@pytest.mark.parametrize(("swap", "message"), SECOND_MISTAKES.values(), ids=SECOND_MISTAKES.keys())
def test_a_form_that_is_right_is_not_blamed_for_a_mistake_elsewhere(lnlit, config, swap, message):
    path = config(swap, ("sequence_length", "sequence_lenght"))
    code, _, err = lnlit("fit", "--config", path)
    assert code == 2 and err.replace(f"{path.parent}/", "").startswith(f"error: {message}"), err


@pytest.mark.parametrize("swap", [swap for swap, message in SECOND_MISTAKES.values() if "lenght" in message])
def test_a_form_that_is_right_is_accepted(lnlit, config, swap):
    assert lnlit("fit", "--config", config(swap), "--print_config")[0] == 0


def test_options_that_a_later_file_would_override_are_refused(lnlit, config):
    path = config()
    for option in (["--trainer.max_steps", "3"], ["--data.seed=3"], ["--model", "SFT"]):
        code, _, err = lnlit("fit", *option, "--config", path)
        told = f"error: {option[0].partition('=')[0]} stands before --config {path}, which has "
        assert code == 2 and err.startswith(told) and err.endswith("Write options behind the last --config.\n"), err
    assert lnlit("fit", "--seed_everything", 3, "--config", path, "--print_config")[0] == 0


def test_a_values_own_check_is_one_line(lnlit, config):
    code, _, err = lnlit("fit", "--config", config(("learning_rate: 0.001", "learning_rate: -1.0")))
    assert code == 2 and err.startswith("error: optimizer: needs 0 <= ") and err.count("\n") == 1, err


def test_a_missing_model_folder_is_one_line(lnlit, config, tiny_model: Path):
    code, _, err = lnlit("fit", "--config", config((f"{tiny_model}\n    opt", "/nowhere\n    opt")))
    assert code == 2 and "error: model '/nowhere': no such file or folder" in err.splitlines()[-1], err


def test_debug_shows_the_traceback(lnlit, config):
    with pytest.raises(ValueError, match="unknown key 'trianer'"):
        lnlit("fit", "--config", config(("trainer:", "trianer:")), "--debug")
