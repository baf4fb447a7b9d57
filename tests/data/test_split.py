import json

import pytest

from lnlit.data.sources import JsonlSource, where
from lnlit.data.split import SplitSource, is_heldout, user_text
from lnlit.errors import UserError


def toggle_rows(questions: int) -> list[dict]:
    """Two rows a question, on and off, in the schemas of chat and of Llama-Nemotron in turn."""
    rows = []
    for number in range(questions):
        for thinking in ("on", "off"):
            user = {"role": "user", "content": f"What is {number} + 1?"}
            reply = {"on": "<think>\n1\n</think>\n\n", "off": ""}[thinking] + str(number + 1)
            if number % 2:
                rows.append({"input": [user], "output": reply, "reasoning": thinking})
            else:
                system = {"role": "system", "content": f"detailed thinking {thinking}"}
                rows.append({"messages": [system, user, {"role": "assistant", "content": reply}]})
    return rows


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"

    def write(rows) -> JsonlSource:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return JsonlSource(str(path))

    return write


def test_every_row_is_on_one_side_and_a_question_on_one_only(file):
    rows = toggle_rows(2000)
    source = file(rows)
    train = list(SplitSource(source, "train", 5).rows())
    heldout = list(SplitSource(source, "heldout", 5).rows())
    assert sorted(map(json.dumps, train + heldout)) == sorted(map(json.dumps, rows))
    assert not {user_text(row) for row in train} & {user_text(row) for row in heldout}
    assert 2 * 70 <= len(heldout) <= 2 * 135  # 100 questions expected, standard deviation 10
    for on, off in zip(heldout[::2], heldout[1::2], strict=True):
        assert user_text(on) == user_text(off) and on != off


def test_other_rows_do_not_move_a_question(file):
    rows = toggle_rows(300)
    before = {user_text(row) for row in SplitSource(file(rows), "heldout", 10).rows()}
    after = {user_text(row) for row in SplitSource(file(rows[::-3]), "heldout", 10).rows()}
    assert after and after < before


def test_the_hash_is_the_same_on_every_machine():
    """A change here would let questions that a finished model was trained on into its held-out set."""
    assert [n for n in range(200) if is_heldout(f"What is {n} + 1?", 5)] == [11, 12, 56, 73, 85, 100, 133, 150, 171]


def test_a_longer_conversation_is_split_by_all_its_user_turns():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]
    row = {"messages": [*turns, {"role": "assistant", "content": "y"}]}
    assert user_text(row) == user_text({"input": [*turns[:1], *turns[2:]], "output": "z", "thinking": "on"})
    assert user_text(row) != user_text({"messages": [{"role": "user", "content": "ab"}]})


def test_reading_from_any_start(file):
    source = SplitSource(file(toggle_rows(40)), "heldout", 20)
    rows = list(source.rows())
    assert len(rows) > 4
    for start in range(len(rows) + 2):
        assert list(source.rows(start)) == rows[start:]


def test_a_place_is_the_line_of_the_file_behind(file):
    rows = toggle_rows(40)
    source = file(rows)
    split = SplitSource(source, "heldout", 20)
    third = list(split.rows())[2]
    assert where(split, 2) == f"{source.files[0]}:{rows.index(third) + 1}"
    assert "row 10001 of" in where(split, 10_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split must be train or heldout, got 'test'"),
        ({"split": "train", "heldout_percent": 0}, "heldout_percent must be between 1 and 99, got 0"),
        ({"split": "train", "heldout_percent": 100}, "between 1 and 99, got 100"),
    ],
)
def test_bad_settings_are_refused(file, arguments, message):
    with pytest.raises(UserError, match=message):
        SplitSource(file(toggle_rows(1)), **arguments)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "plain"}, r"rows\.jsonl:3: expected the key messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"rows\.jsonl:3: no user message"),
        ({"messages": ["x"]}, r"rows\.jsonl:3: a message must be a mapping"),
    ],
)
def test_a_bad_row_is_named_with_its_line(file, row, message):
    with pytest.raises(UserError, match=message):
        list(SplitSource(file([*toggle_rows(1), row]), "train").rows())


def test_a_side_without_rows_is_an_error(file):
    with pytest.raises(UserError, match=r"none of the 2 rows of .*rows\.jsonl falls on the heldout side"):
        list(SplitSource(file(toggle_rows(1)), "heldout").rows())
