"""A measured child's misses tighten the next search's targets, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lnlit.errors import UserError
from lnlit.interfaces import Workload
from lnlit.search.measure import Plan
from lnlit.search.problem import corrected
from lnlit.search.targets import Target
from lnlit.stages.measure import untimed
from lnlit.testing.tiny import tiny_spec

TABLE = replace(
    untimed(Plan.of(tiny_spec(), [], []), [Workload(8, 16, 4), Workload(16, 16, 4)], "bfloat16"), engine="native"
)


def model(predicted: float, measured: float, label: str = "") -> dict:
    def costs(seconds: float) -> dict:
        return {f"latency_s{label}": seconds, f"throughput{label}": 100 / seconds}

    return {"name": "m", "predicted": costs(predicted), "measured": costs(measured)}


def write(folder: Path, *models: dict, **changes) -> Path:
    file = folder / "measured.json"
    about = {"engine": "native", "dtype": "bfloat16", "workloads": [asdict(w) for w in TABLE.workloads]}
    file.write_text(json.dumps({**about, "costs_sha256": TABLE.sha256, "models": list(models), **changes}))
    return file


def correct(file: Path, *targets: Target) -> tuple[Target, ...]:
    return corrected(targets, file, TABLE, TABLE.workloads)


def test_a_child_slower_than_predicted_asks_for_more(tmp_path, capsys):
    file = write(tmp_path, model(2.0, 2.0), model(1.0, 1.1))
    faster, sooner = correct(file, Target("throughput", min=100.0), Target("latency_s", max=1.0))
    (new_tokens_alone,) = correct(file, Target("output_throughput", min=30.0))
    assert faster.min == pytest.approx(110) and new_tokens_alone.min == pytest.approx(33)
    assert sooner.max == pytest.approx(1 / 1.1)
    assert "10.0% worse than predicted, so asking for throughput min 110" in capsys.readouterr().err


def test_of_parent_counts_what_the_parent_missed_too(tmp_path):
    file = write(tmp_path, model(2.0, 2.1), model(1.0, 1.26))
    (target,) = correct(file, Target("throughput", min=1.3, of_parent=True))
    assert target.min == pytest.approx(1.3 * 1.26 / 1.05)


def test_a_fused_child_that_the_table_could_not_predict_is_passed_over(tmp_path):
    file = write(tmp_path, model(2.0, 2.0), model(1.0, 1.1), {**model(1.0, 0.9), "predicted": {}})
    (target,) = correct(file, Target("throughput", min=100.0))
    assert target.min == pytest.approx(110)


def test_the_worst_workload_counts(tmp_path):
    child = model(1.0, 1.1, " @ 8x16+4")
    slower = model(1.0, 1.2, " @ 16x16+4")
    child = {side: child[side] | slower[side] for side in ("predicted", "measured")}
    (target,) = correct(write(tmp_path, child, child), Target("latency_s", max=1.0))
    assert target.max == pytest.approx(1 / 1.2)


@pytest.mark.parametrize(
    ("child", "target"),
    [
        (model(1.0, 0.9), Target("throughput", min=100.0)),  # faster than predicted: the promise is kept
        (model(1.0, 1.5), Target("memory_mib", max=100.0)),  # bytes are counted, not measured
        (model(1.0, 1.5), Target("latency_s", min=100.0)),  # slower is what was asked for
    ],
)
def test_other_targets_stay(tmp_path, child, target):
    assert correct(write(tmp_path, model(2.0, 2.0), child), target) == (target,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm"}, "measured with vllm in bfloat16, the cost table with native in bfloat16"),
        ({"workloads": [{"batch_size": 8, "prompt_tokens": 16, "new_tokens": 4}]}, r"measured 8x16\+4, not 16x16\+4"),
        ({"workloads": [{"batch_size": 1, "prompt_tokens": 1, "new_tokens": 1}]}, r"measured 1x1\+1, not 8x16\+4 and"),
        ({"costs_sha256": "0" * 64}, "predictions are those of another cost table"),
        ({"workloads": [{"batch": 8}]}, "is no file of `lnlit search verify`"),
        ({"models": []}, "is no file of `lnlit search verify`"),
        ({"models": [{"name": "m", "measured": 3}]}, "is no file of `lnlit search verify`"),
        ({"models": [{"name": "m"}]}, "is no file of `lnlit search verify`"),
        ({"models": [model(1.0, float("nan"))]}, "latency_s was predicted and measured as .*nan.*must be above 0"),
        ({"models": [{"name": "m", "predicted": {"latency_s": 0.0}, "measured": {"latency_s": 1.0}}]}, "above 0"),
        ({"models": [{"name": "m", "predicted": {"latency_s": "1"}, "measured": {"latency_s": 1.0}}]}, "above 0"),
    ],
)
def test_another_file_is_refused(tmp_path, changes, message):
    file = write(tmp_path, model(1.0, 1.0), **changes)
    with pytest.raises(UserError, match=message):
        correct(file, Target("latency_s", max=1.3))


def test_only_the_workloads_that_are_asked_for_count(tmp_path):
    child = model(1.0, 1.1, " @ 8x16+4")
    slower = model(1.0, 1.2, " @ 16x16+4")
    child = {side: child[side] | slower[side] for side in ("predicted", "measured")}
    file = write(tmp_path, child, child)
    (target,) = corrected([Target("latency_s", max=1.0)], file, TABLE, TABLE.workloads[:1])
    assert target.max == pytest.approx(1 / 1.1)


def test_a_file_of_an_older_lnlit_is_told_and_its_labels_count(tmp_path, capsys):
    file = write(tmp_path, model(1.0, 1.1))
    data = json.loads(file.read_text())
    file.write_text(json.dumps({key: data[key] for key in ("engine", "dtype", "models")}))
    assert correct(file, Target("latency_s", max=1.1))[0].max == pytest.approx(1.0)
    assert "did not say what it was measured beside" in capsys.readouterr().err
    data["models"] = [model(1.0, 1.1, " @ 1x2+3")]
    file.write_text(json.dumps({key: data[key] for key in ("engine", "dtype", "models")}))
    with pytest.raises(UserError, match=r"measured 1x2\+3, not 8x16\+4"):
        correct(file, Target("latency_s", max=1.0))
