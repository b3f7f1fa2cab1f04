"""Loading stimuli from files."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope.errors import StimulusError
from stratoscope.stimuli import StimulusTable, load_stimuli
from stratoscope.stimuli.fields import typed_cells
from stratoscope.stimuli.spans import parse_span
from stratoscope.stimuli.table import content_hash
from stratoscope_wire import Stimulus

CSV = (
    "id,text,span.noun,place,n,score,code,real\n"
    'a,"A church, and organ",church,church,1,0.5,007,true\n'
    "b,a cat,2:5,,2,1,12,false\n"
    "c,no noun,,home,3,,1e3,TRUE\n"
)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_csv_gives_texts_spans_and_typed_fields(tmp_path: Path) -> None:
    table = load_stimuli(written(tmp_path, "stimuli.csv", CSV))
    assert table.ids == ("a", "b", "c")
    assert table.texts == ("A church, and organ", "a cat", "no noun")
    assert [stimulus.spans for stimulus in table.stimuli] == [{"noun": (2, 8)}, {"noun": (2, 5)}, {}]
    assert table.fields.to_dict(as_series=False) == {
        "place": ["church", None, "home"],
        "n": [1, 2, 3],
        "score": [0.5, 1.0, None],
        "code": ["007", "12", "1e3"],
        "real": [True, False, True],
    }


def test_the_same_table_comes_from_every_format(tmp_path: Path) -> None:
    csv = load_stimuli(written(tmp_path, "stimuli.csv", CSV))
    rows = [
        {"id": name, "text": text, **fields}
        for name, text, fields in zip(csv.ids, csv.texts, csv.field_rows(), strict=True)
    ]
    for row, span in zip(rows, ("church", "2:5", None), strict=True):
        row["span.noun"] = span
    jsonl = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    pl.DataFrame(rows).write_parquet(tmp_path / "stimuli.parquet")
    frame = pl.DataFrame(rows)
    frame.write_csv(tmp_path / "stimuli.tsv", separator="\t")
    tables = [
        load_stimuli(written(tmp_path, "stimuli.jsonl", jsonl)),
        load_stimuli(tmp_path / "stimuli.parquet"),
        load_stimuli(tmp_path / "stimuli.tsv"),
        StimulusTable.from_frame(frame),
    ]
    for table in tables:
        assert table.stimuli == csv.stimuli
        assert table.content_hashes == csv.content_hashes
        assert table.fields.equals(csv.fields)


def test_jsonl_may_hold_token_ids_messages_and_ranges(tmp_path: Path) -> None:
    lines = [
        {"id": 1, "token_ids": [5, 6], "kind": "tokens"},
        {"id": 2, "messages": [{"role": "user", "content": "Hi"}], "kind": "chat"},
        {"id": 3, "text": "a cat", "span.noun": [2, 5], "kind": "text"},
    ]
    table = load_stimuli(written(tmp_path, "s.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n"))
    assert table.stimuli[0] == Stimulus(id="1", token_ids=[5, 6])
    assert table.stimuli[1].messages is not None
    assert table.stimuli[2].spans == {"noun": (2, 5)}
    assert list(table.fields["kind"]) == ["tokens", "chat", "text"]


def test_without_ids_a_stimulus_is_named_by_its_content(tmp_path: Path) -> None:
    forward = load_stimuli(written(tmp_path, "a.csv", "text\nfirst\nsecond\nfirst\n"))
    backward = load_stimuli(written(tmp_path, "b.csv", "text\nnew\nsecond\nfirst\n"))
    assert len(set(forward.ids)) == 3
    assert forward.ids[2] == f"{forward.ids[0]}-2"
    assert backward.ids[1:] == (forward.ids[1], forward.ids[0])


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    assert load_stimuli(written(tmp_path, "s.csv", b"\xef\xbb\xbftext\nZ\xc3\xbcrich\n")).texts == ("Zürich",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("s.txt", "text\na\n", r"unknown suffix '\.txt'", id="suffix"),
        pytest.param("s.csv", "", r"s\.csv is empty", id="empty"),
        pytest.param("s.csv", "text\n", r"s\.csv holds no stimuli", id="header-only"),
        pytest.param("s.csv", "words\na\n", r"s\.csv has no column 'text'", id="no-text"),
        pytest.param("s.csv", "text,text\na,b\n", r"column 'text' occurs more than once", id="column-twice"),
        pytest.param("s.csv", "text, label\na,b\n", r"' label' is empty or has blanks", id="blank-in-name"),
        pytest.param("s.csv", "text,n\na,1\n,2\n", r"s\.csv, row 2 \(line 3\): the text is empty", id="no-text-in-row"),
        pytest.param("s.csv", 'text,n\na,1\n"  ",2\n', r"row 2 \(line 3\), column 'text'", id="blank-text"),
        pytest.param("s.csv", "text,n\na,1\nb\n", r"row 2 \(line 3\): 1 cells for 2 columns", id="short-row"),
        pytest.param("s.csv", "text,n\nA dog, too,1\n", r"row 1 \(line 2\): 3 cells for 2 columns", id="long-row"),
        pytest.param("s.csv", 'text\n"a\n', r"line 2: unexpected end of data", id="open-quote"),
        pytest.param("s.csv", "id,text\nx,a\nx,b\n", r"row 2 .*'x' already names the stimulus in row 1", id="id-twice"),
        pytest.param("s.csv", "id,text\nx,a\n,b\n", r"row 2 .*column 'id': None is no id", id="id-missing"),
        pytest.param("s.csv", "text,span.n\na cat,dog\n", r"column 'span\.n': 'dog' does not occur", id="span-absent"),
        pytest.param("s.csv", "text,span.n\na a,a\n", r"occurs more than once.*for example '0:1'", id="span-twice"),
        pytest.param("s.csv", "text,span.n\na cat,2:9\n", r"range 2:9 is empty or leaves the text's 5", id="span-end"),
        pytest.param("s.csv", "text,span.n\nat 3:5,3:5\n", r"range of characters, and also occurs", id="span-unclear"),
        pytest.param("s.csv", "text,span.1\na cat,cat\n", r"row 1 .*spans", id="span-name"),
        pytest.param(
            "s.csv", "text,position\na,1\n", r"column 'position': the name 'position' is taken", id="reserved"
        ),
        pytest.param("s.csv", "text,resid_post.3\na,1\n", r"that of a column of activations", id="activation-name"),
        pytest.param("s.csv", b"text\nZ\xfcrich\n", r"line 2: byte 0xfc is not UTF-8", id="latin-1"),
        pytest.param("s.csv", "text\na\n".encode("utf-16"), r"is UTF-16; save it as UTF-8", id="utf-16"),
        pytest.param("s.jsonl", '{"text": "a"}\n{"text": \n', r"s\.jsonl, row 2 \(line 2\)", id="json"),
        pytest.param("s.jsonl", "[1]\n", r"expected an object", id="json-list"),
        pytest.param("s.jsonl", '{"text": "a", "text": "b"}\n', r"a name occurs twice", id="json-name-twice"),
        pytest.param("s.jsonl", '{"text": "a", "n": [1]}\n', r"column 'n': values of type list", id="nested"),
        pytest.param("s.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": "x"}\n', r"several types", id="mixed"),
        pytest.param("s.jsonl", '{"text": 5}\n', r"column 'text': 5 is no text", id="number-as-text"),
        pytest.param("s.jsonl", '{"text": "\\ud800"}\n', r"row 1 .*not valid Unicode", id="half-surrogate"),
        pytest.param("s.jsonl", '{"text": "a", "token_ids": [1]}\n', r"exactly one of", id="two-sources"),
        pytest.param("s.jsonl", '{"token_ids": [1], "span.n": [0, 1]}\n', r"only a text has spans", id="span-no-text"),
        pytest.param("s.parquet", "no parquet", r"is not a readable Parquet file", id="not-parquet"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(StimulusError, match=message):
        load_stimuli(written(tmp_path, name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StimulusError, match=r"nowhere\.csv: there is no such file"):
        load_stimuli(tmp_path / "nowhere.csv")


def test_the_content_hash_is_that_of_what_is_sent() -> None:
    plain = Stimulus(id="a", text="a cat")
    assert content_hash(plain) == content_hash(Stimulus(id="b", text="a cat"))
    assert content_hash(plain) != content_hash(Stimulus(id="a", text="a cat "))
    assert content_hash(plain) != content_hash(Stimulus(id="a", text="a cat", spans={"noun": (2, 5)}))
    # Pinned: a change would make every run collected so far refuse its own stimuli.
    assert content_hash(plain).startswith("781d87be")


@given(before=st.text(max_size=20), words=st.text(min_size=1, max_size=8), after=st.text(max_size=20))
def test_words_are_found_where_they_are_or_refused(before: str, words: str, after: str) -> None:
    text = before + words + after
    n_places = sum(text.startswith(words, start) for start in range(len(text)))
    try:
        start, end = parse_span(words, text)
    except ValueError:
        assert n_places > 1 or ":" in words
    else:
        assert n_places == 1
        assert text[start:end] == words


@given(text=st.text(alphabet="abc", max_size=20), start=st.integers(-3, 25), end=st.integers(-3, 25))
def test_a_range_is_taken_exactly_if_it_lies_in_the_text(text: str, start: int, end: int) -> None:
    is_inside = 0 <= start < end <= len(text)
    for value in (f"{start}:{end}", [start, end]):
        try:
            assert parse_span(value, text) == (start, end)
        except ValueError:
            assert not is_inside
        else:
            assert is_inside


@given(st.lists(st.none() | st.text(alphabet="0123456789.-+eEtrufalsTRUE ", min_size=1), max_size=6))
def test_typing_cells_never_makes_two_labels_one_or_one_two(cells: list[str | None]) -> None:
    typed = typed_cells(cells)
    assert [value is None for value in typed] == [cell is None for cell in cells]
    if any(type(value) is int for value in typed):
        assert [str(value) for value in typed if value is not None] == [cell for cell in cells if cell is not None]
    if any(isinstance(value, str) for value in typed):
        assert typed == cells
