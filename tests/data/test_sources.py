import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from chat_samples import toggle_rows, write_jsonl

from lnlit import registry
from lnlit.data.sources import HuggingFaceSource, JsonlSource, ParquetSource, readable_rows, where
from lnlit.errors import UserError


@pytest.fixture
def rows():
    made = toggle_rows(5)
    made[2]["messages"][0]["content"] = "line\u2028separator\u2029and\x85more"
    return made


def test_json_files_of_every_kind_give_the_same_rows(tmp_path, rows):
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl.gz", rows)
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.jsonl").write_bytes(b"\r\n\n".join(json.dumps(row).encode() for row in rows))
    (tmp_path / "e.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())  # a byte order mark
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.jsonl", "e.jsonl"):
        assert list(JsonlSource(str(tmp_path / name)).rows()) == rows, name


def test_globs_leave_out_hidden_files_as_a_shell_does(tmp_path):
    for name in ("b.jsonl", "a.jsonl", ".a.jsonl.lnlit-12345678.jsonl", ".hidden/c.jsonl", "deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"name": name}) + "\n")

    def names(paths):
        return [row["name"] for row in JsonlSource(paths).rows()]

    assert names(str(tmp_path / "*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert names(str(tmp_path / "**/*.jsonl")) == ["a.jsonl", "b.jsonl", "deep/d.jsonl"]
    assert names(str(tmp_path / ".hidden/*.jsonl")) == [".hidden/c.jsonl"]


def test_globs_and_lists_keep_their_order(tmp_path, rows):
    write_jsonl(tmp_path / "2.jsonl", rows[3:])
    write_jsonl(tmp_path / "1.jsonl", rows[:3])
    assert list(JsonlSource(str(tmp_path / "*.jsonl")).rows()) == rows
    reverse = JsonlSource([str(tmp_path / "2.jsonl"), str(tmp_path / "1.jsonl")])
    assert list(reverse.rows()) == rows[3:] + rows[:3]
    assert list(reverse.rows(4)) == rows[2:3]


def test_parquet_starts_anywhere(tmp_path, rows):
    for number, part in enumerate((rows[:4], rows[4:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / f"{number}.parquet", row_group_size=2)
    source = ParquetSource(str(tmp_path / "*.parquet"))
    for start in range(len(rows) + 1):
        assert list(source.rows(start)) == rows[start:]


@pytest.mark.parametrize("streaming", [False, True])
def test_huggingface_reads_a_local_folder(tmp_path, rows, streaming, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", rows)
    source = HuggingFaceSource(str(tmp_path / "set"), "train", streaming=streaming)
    assert list(source.rows()) == rows
    assert list(source.rows(3)) == rows[3:] and list(source.rows(5)) == []


def test_errors_name_file_and_line(tmp_path, rows):
    write_jsonl(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n{"messages": \n')
    with pytest.raises(UserError, match=r"a\.jsonl:7: not valid JSON"):
        list(JsonlSource(str(tmp_path / "a.jsonl")).rows())
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"b\.jsonl:2: expected a JSON object, got list"):
        list(JsonlSource(str(tmp_path / "b.jsonl")).rows())
    (tmp_path / "c.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="expected a list of rows, got dict"):
        list(JsonlSource(str(tmp_path / "c.json")).rows())
    (tmp_path / "d.jsonl").write_bytes(b'{"a": 1}\n"\xff"\n')
    with pytest.raises(UserError, match=r"d\.jsonl.*not UTF-8"):
        list(JsonlSource(str(tmp_path / "d.jsonl")).rows())


def test_a_json_file_may_have_one_object_a_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n\n{"a": 2}\n')
    source = JsonlSource(str(tmp_path / "a.json"))
    assert list(source.rows()) == [{"a": 1}, {"a": 2}]
    assert source.where(1) == f"{tmp_path / 'a.json'}:3"
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": }\n')
    with pytest.raises(UserError, match=r"a.json:2: not valid JSON"):
        list(source.rows())


def test_a_cut_gzip_is_a_clear_error(tmp_path):
    whole = write_jsonl(tmp_path / "a.jsonl.gz", toggle_rows(500)).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:\d+: cannot be read"):
        list(JsonlSource(str(tmp_path / "a.jsonl.gz")).rows())


def test_missing_and_broken_files(tmp_path):
    for paths in (str(tmp_path / "absent.jsonl"), str(tmp_path / "*.jsonl"), str(tmp_path)):
        with pytest.raises(UserError, match="no file matches"):
            JsonlSource(paths)
    with pytest.raises(UserError, match="list of paths is empty"):
        JsonlSource([])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        list(ParquetSource(str(tmp_path / "a.parquet")).rows())
    with pytest.raises(UserError, match="cannot load"):
        list(HuggingFaceSource(str(tmp_path / "absent"), "train").rows())


def test_where_finds_the_line_past_blank_ones(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert where(JsonlSource(str(tmp_path / "a.jsonl")), 1).endswith("a.jsonl:3")


def test_every_registered_source_builds_by_name(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", toggle_rows(2))
    assert len(list(registry.build("source", "jsonl", str(tmp_path / "a.jsonl")).rows())) == 2
    for name in ("parquet", "huggingface", "reasoning_gym"):
        assert registry.get("source", name)


# columns that are called otherwise


def gsm(tmp_path):
    return str(
        write_jsonl(tmp_path / "gsm.jsonl", [{"question": f"q{n}", "answer": str(n), "id": n} for n in range(3)])
    )


def test_columns_are_called_as_they_are_to_be_read(tmp_path):
    source = JsonlSource(gsm(tmp_path), {"question": "prompt", "answer": "completion", "id": None})
    expected = [{"prompt": f"q{n}", "completion": str(n)} for n in range(3)]
    assert list(source.rows()) == expected
    assert list(source.rows(2)) == expected[2:]
    assert str(source) == f"{tmp_path}/gsm.jsonl (question as prompt, answer as completion, id left out)"
    assert source.where(1) == f"{tmp_path}/gsm.jsonl:2"


def test_columns_of_parquet_and_of_datasets(tmp_path):
    import datasets

    rows = [{"question": "q", "answer": "a"}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data.parquet"))
    columns: dict[str, str | None] = {"question": "prompt", "answer": None}
    assert list(ParquetSource(str(tmp_path / "data.parquet"), columns).rows()) == [{"prompt": "q"}]
    assert list(HuggingFaceSource(str(tmp_path), "train", columns=columns).rows()) == [{"prompt": "q"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"quesion": "prompt"}, r"no column 'quesion'. Did you mean 'question'\? It has: question, answer, id"),
        ({"prompt": "question"}, r"no column 'prompt'. Columns come first, as in \{question: prompt\}"),
        ({"question": "id"}, r"gsm.jsonl:1: columns: two columns would be called 'id'"),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        list(JsonlSource(gsm(tmp_path), columns).rows())
    with pytest.raises(UserError, match="cannot both be called 'prompt'"):
        JsonlSource(gsm(tmp_path), {"question": "prompt", "answer": "prompt"})


def test_a_column_need_not_be_in_every_row(tmp_path):
    file = write_jsonl(tmp_path / "some.jsonl", [{"q": "1"}, {"q": "2", "hint": "h", "prompt": None}])
    source = JsonlSource(str(file), {"q": "prompt", "hint": "context"})
    assert list(source.rows()) == [{"prompt": "1"}, {"prompt": "2", "context": "h"}]


@pytest.mark.parametrize("path", ["", "/", ".", "a**b", "x" * 300, "\0", "[", "~no-such-user/x", ["", ""]], ids=ascii)
def test_a_path_that_names_no_file_is_one_line(path):
    with pytest.raises(UserError, match=r"^data: "):
        JsonlSource(path)


def test_a_folder_says_how_to_name_its_files(tmp_path):
    with pytest.raises(UserError, match=r"is a folder: name its files, as in .*\*\.jsonl"):
        JsonlSource(str(tmp_path))


def test_rows_behind_one_that_cannot_be_read_are_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n{"n": 1\n\n{"n": "\xff"}\n[4]\n' + b"[" * 10**6 + b'\n{"n": 6}\n')
    found = list(readable_rows(JsonlSource(str(file))))
    assert [index for index, _ in found] == list(range(6))
    assert [row for _, row in found if isinstance(row, dict)] == [{"n": 0}, {"n": 6}]
    said = [str(row) for _, row in found if isinstance(row, UserError)]
    assert [text.removeprefix(f"{file}:").partition(": ")[0] for text in said] == ["2", "4", "5", "6"]
    assert "not UTF-8 text" in said[1] and "expected a JSON object" in said[2]


def test_a_file_that_ends_in_the_middle_ends_the_reading(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(5000)))
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="Is the file whole"):
        list(readable_rows(JsonlSource(str(file))))


def test_a_file_of_something_else_is_refused_soon(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("a,b\n" * 5000)
    with pytest.raises(UserError, match=r"rows\.jsonl:1001: not valid JSON"):
        list(readable_rows(JsonlSource(str(file))))
