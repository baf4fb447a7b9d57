"""An endpoint as an engine: what it is asked, what becomes of its answers, and that no failure stops or hangs a run."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from fake_judge import FakeJudge, completion

from lnlit.data.sources import JsonlSource
from lnlit.errors import UserError
from lnlit.interfaces import BatchReward, RewardResult, RolloutRequest, RolloutSampling
from lnlit.modules.prompt_data import PromptData, RolloutConfig, Weighted
from lnlit.rollout.endpoint import EndpointEngine
from lnlit.sampling.model import MessageEncoder
from lnlit.sampling.prompt import TokenEncoder
from lnlit.sampling.sampler import request_seed
from lnlit.sampling.settings import Sampling
from lnlit.stages.annotate import annotate
from lnlit.stages.generate import Rounds, generate

pytest.importorskip("httpx2")
ASKED = [{"role": "system", "content": "detailed thinking on"}, {"role": "user", "content": "2 + 2?"}]
SAMPLING = RolloutSampling(max_new_tokens=50, temperature=0.6, top_p=0.95)


@pytest.fixture
def fake():
    server = FakeJudge()
    server.behave = lambda number, body: (200, completion("4", finish_reason="stop"))
    yield server
    server.close()


def engine(url: str, **options) -> EndpointEngine:
    return EndpointEngine(url, "some-model", **{"time_limit_s": 5.0, "retries": 0, **options})


def answers(url: str, count: int = 1, **options):
    return engine(url, **options).generate([RolloutRequest((), seed, ASKED) for seed in range(count)], SAMPLING)


def test_the_conversation_and_the_settings_are_sent(fake, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    options = {"api_key_env": "SOME_KEY", "body": {"top_p": None, "chat_template_kwargs": {"a": 1}}}
    engine(fake.url + "/", **options).generate([RolloutRequest((), 2**40 + 5, ASKED)], SAMPLING)
    assert fake.bodies == [
        {
            "path": "/v1/chat/completions",
            "model": "some-model",
            "messages": ASKED,
            "max_tokens": 50,
            "temperature": 0.6,
            "seed": 5,
            "chat_template_kwargs": {"a": 1},
        }
    ]
    assert fake.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        ({"content": "4"}, "stop", "4"),
        ({"content": ""}, "stop", ""),
        ({"content": "4", "reasoning_content": "two and two"}, "stop", "<think>\ntwo and two\n</think>\n4"),
        ({"content": "4", "reasoning": "two and two"}, "length", "<think>\ntwo and two\n</think>\n4"),
        ({"content": None, "reasoning_content": "two and"}, "length", "<think>\ntwo and\n"),
        ({"content": "half \ud800"}, "stop", "half ?"),
    ],
)
def test_answers_become_texts_with_their_thoughts(fake, message, reason, text):
    body = {"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": 17}}
    fake.behave = lambda number, asked: (200, json.dumps(body).encode())
    (found,) = answers(fake.url)
    assert (found.text, found.finish_reason, found.length, found.error) == (text, reason, 17, None)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"<html>", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": null}', b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}', b"\xff" * 9, b"[" * 100_000, completion(None, finish_reason="stop"),
        completion(["4"], finish_reason="stop"), completion({"a": 1}, finish_reason="stop"),
    ],
)  # fmt: skip
def test_nonsense_is_a_missing_completion(fake, data):
    fake.behave = lambda number, body: (200, data)
    (found,) = answers(fake.url)
    assert found.finish_reason == "error" and found.text == "" and found.error.startswith("nonsense: ")


@pytest.mark.parametrize("reason", [None, "content_filter", "tool_calls", 5])
def test_a_completion_that_was_stopped_by_others_is_missing(fake, reason):
    fake.behave = lambda number, body: (200, completion("4", finish_reason=reason))
    assert answers(fake.url)[0].error.startswith("refused: ")


@pytest.mark.parametrize(("status", "asked"), [(500, 3), (429, 3), (400, 1), (404, 1)])
def test_retries_are_bounded_and_counted_once(fake, status, asked):
    fake.behave = lambda number, body: (status, b"no")
    caller = engine(fake.url, retries=2)
    (found,) = caller.generate([RolloutRequest((), 0, ASKED)], SAMPLING)
    assert found.error.startswith(f"refused: HTTP {status} from {fake.url}/chat/completions")
    assert len(fake.bodies) == asked
    assert caller.counts() == {"refused": 1}


@pytest.mark.parametrize(
    ("status", "options", "says"),
    [
        (401, {}, "it does not accept requests without key. api_key_env names the variable of one that it accepts."),
        (403, {"api_key_env": "SOME_KEY"}, "it does not accept the key in the environment variable SOME_KEY."),
        (429, {}, "its rate limit is reached, after 0 retries. Lower max_concurrency, or wait."),
    ],
)
def test_a_refusal_says_what_to_do(fake, status, options, says, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    fake.behave = lambda number, body: (status, b"no")
    error = answers(fake.url, **options)[0].error
    assert error.startswith(f"refused: HTTP {status} from {fake.url}/chat/completions: {says}")
    assert "\n" not in error and "secret" not in error


def test_a_model_that_is_not_there_is_told_beside_those_that_are(fake):
    fake.behave, fake.models = lambda number, body: (404, b""), ["one", "two"]
    errors = {each.error for each in answers(fake.url, 5)}
    assert errors == {f"refused: HTTP 404 from {fake.url}/chat/completions: no model 'some-model'. It has: one, two."}
    assert fake.lists == 1
    fake.models = None
    assert "there is no such address. The url must end with the endpoint's version" in answers(fake.url)[0].error


@pytest.mark.parametrize("date", [False, True])
def test_one_that_asks_to_be_left_alone_is(fake, date, monkeypatch):
    waits, sleep = [], asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: waits.append(seconds) or sleep(0))
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    fake.reply_headers = {"Retry-After": later if date else "200"}
    fake.behave = lambda number, body: (429, b"") if number < 3 else (200, completion("4", finish_reason="stop"))
    assert answers(fake.url, retries=2)[0].text == "4"
    assert len(waits) == 2 and all(190 <= each <= 200 for each in waits)


def test_an_encoder_of_messages_reads_no_tokens():
    assert not isinstance(MessageEncoder(), TokenEncoder)


def test_one_that_recovers_is_waited_for(fake):
    fake.behave = lambda number, body: (503, b"busy") if number < 3 else (200, completion("4", finish_reason="stop"))
    assert answers(fake.url, retries=3)[0].text == "4"


def test_a_slow_one_ends_in_time(fake):
    fake.delay_s = 3.0
    began = time.monotonic()
    found = answers(fake.url, 4, time_limit_s=0.2)
    assert time.monotonic() - began < 2.5
    assert {each.error for each in found} == {"timed_out: no answer within 0.2 s"}


def test_one_that_never_answers_ends_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = answers(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", 2, time_limit_s=0.3)
    assert {each.error.partition(":")[0] for each in found} == {"timed_out"}


class Four(BatchReward):
    def score_batch(self, requests):
        return [RewardResult(float(request.completion == "4")) for request in requests]


def prompts(tmp_path, count: int = 4) -> JsonlSource:
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "2 + {n}?"}}\n' for n in range(count)))
    return JsonlSource(str(tmp_path / "prompts.jsonl"))


def rows(tmp_path, url, **options) -> list[dict]:
    out, given = tmp_path / "rows.jsonl", {"strict": options.pop("strict", False)}
    rewards, rounds = [Weighted(Four())], Rounds(2)
    source = prompts(tmp_path)
    generate(None, source, str(out), rewards, engine(url, **options), Sampling(3, 50), "on", rounds=rounds, **given)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_are_generated_without_a_model_folder(fake, tmp_path):
    found = rows(tmp_path, fake.url)
    assert [row["rewards"] for row in found] == [[1.0] * 3] * 4 and found[0]["tokens"] == [None] * 3
    assert {body["messages"][0]["content"] for body in fake.bodies} == {"detailed thinking on"}
    assert found[0]["generated"]["engine"]["url"] == fake.url and found[0]["generated"]["model"] is None
    assert "time_limit_s" not in json.dumps(found)
    annotate(None, prompts(tmp_path), Four(), str(tmp_path / "rates.jsonl"), engine(fake.url), Sampling(2, 50))
    assert [json.loads(line)["pass_rate"] for line in (tmp_path / "rates.jsonl").open()] == [1.0] * 4


def test_missing_completions_are_counted_where_the_user_looks(fake, tmp_path, capsys):
    right = completion("4", finish_reason="stop")
    fake.behave = lambda number, body: (500, b"") if number % 3 == 0 else (200, b"" if number % 3 == 1 else right)
    found = rows(tmp_path, fake.url)
    assert sum(len(row["completions"]) for row in found) == 4
    assert all(len(row["completions"]) + len(row["generated"].get("missing", ())) == 3 for row in found)
    assert "8 completions missing: " in (err := capsys.readouterr().err)
    assert "4 nonsense" in err and "4 refused" in err


def test_missing_completions_are_asked_for_again_by_the_same_command(fake, tmp_path, capsys):
    right = completion("4", finish_reason="stop")
    fake.behave = lambda number, body: (500, b"") if number % 3 == 0 else (200, right)
    before = rows(tmp_path, fake.url)
    asked = len(fake.bodies)
    fake.behave = lambda number, body: (500, b"") if number == asked + 1 else (200, right)
    part = rows(tmp_path, fake.url)
    assert len(fake.bodies) - asked == 4 and "1 completions missing: 1 refused" in capsys.readouterr().err
    assert sum(len(row["completions"]) for row in part) == 11
    whole = rows(tmp_path, fake.url)
    assert len(fake.bodies) - asked == 5 and "completions missing" not in capsys.readouterr().err
    wanted = {request_seed(0, 0, place, sample) for place in range(4) for sample in range(3)}
    for old, row in zip(before, whole, strict=True):
        assert row["completions"] == ["4"] * 3 and row["rewards"] == [1.0] * 3 and row["pass_rate"] == 1
        seeds = old["generated"]["seeds"]
        assert row["generated"]["seeds"][: len(seeds)] == seeds and "missing" not in row["generated"]
    assert {seed for row in whole for seed in row["generated"]["seeds"]} == wanted
    assert rows(tmp_path, fake.url) == whole and len(fake.bodies) - asked == 5


def test_what_is_missing_in_a_round_that_was_cut_is_asked_for_once(fake, tmp_path):
    right = completion("4", finish_reason="stop")
    fake.behave = lambda number, body: (500, b"") if number % 3 == 0 else (200, right)
    rows(tmp_path, fake.url)
    (journal,) = tmp_path.glob("*.completions")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:4]))  # the second round's first row
    fake.behave = lambda number, body: (200, right)
    found = rows(tmp_path, fake.url)
    assert [row["completions"] for row in found] == [["4"] * 3] * 4
    assert all(len(set(row["generated"]["seeds"])) == 3 for row in found)


def test_one_that_goes_down_stops_the_run_and_what_was_done_is_kept(fake, tmp_path):
    right = (200, completion("4", finish_reason="stop"))
    fake.behave = lambda number, body: right if number <= 6 else (500, b"down")
    with pytest.raises(UserError, match=r"engine: none of 6 completions could be had; the first: refused: HTTP 500"):
        rows(tmp_path, fake.url)
    asked = len(fake.bodies)
    fake.behave = lambda number, body: right
    assert [row["rewards"] for row in rows(tmp_path, fake.url)] == [[1.0] * 3] * 4
    assert len(fake.bodies) == asked + 6, "only the second round is generated"


def test_one_that_is_down_is_one_line(tmp_path):
    server = FakeJudge()
    server.close()
    with pytest.raises(UserError, match=r"engine: none of 6 completions could be had; the first: unreachable: "):
        rows(tmp_path, server.url)


def test_strict_stops_at_the_first_that_is_missing(fake, tmp_path):
    right = (200, completion("4", finish_reason="stop"))
    fake.behave = lambda number, body: (200, b"") if number == 2 else right
    with pytest.raises(UserError, match="a completion is missing: nonsense: "):
        rows(tmp_path, fake.url, strict=True)


def test_a_policy_cannot_learn_from_it(fake, tmp_path):
    with pytest.raises(UserError, match="EndpointEngine generates with a model of its own"):
        PromptData("t", prompts(tmp_path), [Weighted(Four())], engine(fake.url), RolloutConfig(1, 2, 3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "localhost"}, "endpoint: url must look like"),
        ({"url": "http://me:secret@host/v1"}, "endpoint: url must look like"),
        ({"time_limit_s": 0.0}, "endpoint: time_limit_s must be positive"),
        ({"retries": -1}, "endpoint: retries must be 0 or more"),
        ({"api_key_env": "sk-1234"}, "not the key itself"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        engine(**{"url": "http://host/v1", **change})


def test_a_missing_key_is_named(fake, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UserError, match="the environment variable NO_KEY must hold the API key"):
        answers(fake.url, api_key_env="NO_KEY")


def test_a_folder_and_an_engine_with_a_model_of_its_own_do_not_go_together(fake, tmp_path):
    source, out = prompts(tmp_path), str(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="generates with a model of its own, so 'runs/model' would not be used"):
        generate("runs/model", source, out, engine=engine(fake.url))
    with pytest.raises(UserError, match="NativeEngine generates with the weights of a model folder"):
        generate(None, source, out)
