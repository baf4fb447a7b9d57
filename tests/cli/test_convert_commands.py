from __future__ import annotations

import json

import pytest


def test_import_writes_a_folder_and_refuses_to_overwrite(lnlit, tiny_model, tmp_path):
    code, out, err = lnlit("import", tiny_model, "copy", "--dtype", "bfloat16")
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "copy")), err
    code, _, err = lnlit("import", tiny_model, "copy")
    assert code == 2 and "exists already" in err
    assert lnlit("import", tiny_model, "copy", "--overwrite")[0] == 0


def test_import_of_nothing_is_one_line(lnlit):
    code, _, err = lnlit("import", "nowhere", "out")
    assert (code, err.count("\n")) == (2, 1) and err.startswith("error: model 'nowhere': no such file or folder"), err


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        (None, "~no-such-user/out", "a path begins with ~ and the name of a user who is not known here"),
        ("~no-such-user/model", "out", "a path begins with ~ and the name of a user who is not known here"),
        ("/dev/null", "out", "model '/dev/null': is neither a file nor a folder"),
        ("pypi:", "out", "model 'pypi:': expected the name of a distribution"),
    ],
)
def test_places_that_cannot_be_are_one_line(lnlit, tiny_model, source, out, message):
    code, _, err = lnlit("import", source or tiny_model, out)
    assert (code, err.count("\n")) == (2, 1) and message in err, err


def test_a_config_of_endless_lists_is_one_line(lnlit, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("[" * 100_000)
    code, _, err = lnlit("import", "model", "out")
    assert (code, err.count("\n")) == (2, 1) and "config.json: cannot be read as a JSON file" in err, err


def test_a_home_folder_is_found_by_every_command(lnlit, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lnlit("import", tiny_model, "~/my model")[0] == 0
    code, _, err = lnlit("chat", "~/my model", "--prompt", "hi", "--max-new-tokens", "1")
    assert code == 0, err


def test_export_writes_a_folder(lnlit, tiny_model, tmp_path):
    code, _, err = lnlit("export", tiny_model, "served")
    assert code == 0, err
    assert (tmp_path / "served" / "config.json").is_file()


def test_an_unknown_dtype_lists_the_known_ones(lnlit, tiny_model):
    code, _, err = lnlit("export", tiny_model, "served", "--dtype", "fp32")
    assert code == 2 and "'float32', 'bfloat16', 'float16'" in err


def test_export_pads_for_pipeline_stages(lnlit, tiny_model, tmp_path):
    code, _, err = lnlit("export", tiny_model, "served", "--pipeline_stages", "2")
    assert code == 0, err
    assert len(json.loads((tmp_path / "served" / "lnlit.json").read_text())["provenance"]["layers"]) == 2
    code, _, err = lnlit("export", tiny_model, "other", "--pipeline_stages", "3")
    assert code == 2 and "expected 1 to 2" in err
    assert not (tmp_path / "other").exists()


def test_import_takes_a_template_of_ours(lnlit, tiny_model, tmp_path):
    code, out, _ = lnlit("import", "--help")
    assert code == 0 and all(name in out for name in ("chatml (", "nemotron (", "deepseek_r1 ("))
    assert lnlit("import", tiny_model, "ours", "--template", "chatml")[0] == 0
    assert "<tool_call>" in (tmp_path / "ours" / "chat_template.jinja").read_text()
    code, _, err = lnlit("import", tiny_model, "other", "--template", "nemotron")
    assert code == 2 and "the tokenizer has no token <|start_header_id|>" in err
    code, _, err = lnlit("import", tiny_model, "other", "--template", "nemtron")
    assert code == 2 and "Did you mean 'nemotron'?" in err


def test_export_quantises_and_reports(lnlit, tiny_model, tmp_path):
    code, out, err = lnlit("export", tiny_model, "small", "--quantize", "int8")
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "small")), err
    assert "q_proj" in err and "largest relative error 0." in err and "kept: it is looked up" in err
    code, _, err = lnlit("export", "small", "again", "--quantize", "fp8")
    assert (code, err.count("\n")) == (2, 1) and "in int8 already" in err
    code, _, err = lnlit("export", tiny_model, "other", "--quantize", "int4")
    assert code == 2 and "'fp8', 'int8'" in err
