"""Files of rows: what is read equals what was written, or the file is refused; there is no third outcome."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from modeling.infer import TableError, read_rows, read_texts as read_text_rows
from modeling.rows.tables import CorpusError, read_table
from training.data.corpus import load_corpus
from training.data.label_mapping import read_mapping
from training.data.labeled_file import FileOptions, read_labeled_file
from training.data.reading import SPLITS
from training.run import main


def read_texts(path: Path, *column: str) -> Iterator[str]:
    """The texts alone."""
    return (text for text, _ in read_text_rows(path, *column))


# What is written, and every way to write it

NAMES = st.lists(
    st.sampled_from(
        [
            "joy",
            "anger",
            "1.0",
            "0.0",
            "0",
            "1",
            "2",
            "a|b",
            "joy & love",
            "x,y",
            "p;q",
            "喜び",
            "cole\u0300re",
            "True",
            "[x]",
        ]
    ),
    min_size=1,
    max_size=6,
    unique=True,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)
FORMS = ("names", "python list", "json list", "numpy list", "multi-hot", "multi-hot floats", "ids", "one-hot")
SEPARATORS = (",", ";", "|", "\t")
SUFFIXES = (".csv", ".CSV", ".tsv", ".jsonl", ".NDJSON", ".json", ".parquet", ".csv.gz", ".tsv.xz", ".jsonl.bz2")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252")


def cell(labels: Sequence[str], chosen: Sequence[str], form: str, separator: str, is_text: bool) -> Any:
    """The labels of a row as a user writes them."""
    bits = [int(name in chosen) for name in labels]
    values: dict[str, list[Any]] = {
        "names": list(chosen),
        "python list": list(chosen),
        "json list": list(chosen),
        "numpy list": list(chosen),
        "multi-hot": bits,
        "multi-hot floats": list(map(float, bits)),
        "ids": [labels.index(name) for name in chosen],
    }
    value = values[form]
    if not is_text:
        return value
    if form in ("names", "ids"):
        return separator.join(map(str, value))
    if form == "numpy list":
        return str(np.array(value, dtype=object))
    return json.dumps(value, ensure_ascii=False) if form == "json list" else str(value)


def write(path: Path, rows: list[dict[str, Any]], encoding: str, delimiter: str) -> None:
    suffix = next(part for part in reversed(path.suffixes) if part.lower() not in (".gz", ".bz2", ".xz")).lower()
    if suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
        return
    buffer = io.StringIO(newline="")
    if suffix in (".csv", ".tsv"):
        writer = csv.DictWriter(buffer, list(rows[0]), delimiter="\t" if suffix == ".tsv" else delimiter)
        writer.writeheader()
        writer.writerows(rows)
    elif suffix == ".json":
        json.dump(rows, buffer, ensure_ascii=False)
    else:
        buffer.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    content = buffer.getvalue().encode(encoding)
    pack: Callable[[bytes], bytes] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(
        path.suffix, lambda data: data
    )
    path.write_bytes(pack(content))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_what_is_read_is_what_was_written(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    labels = data.draw(NAMES)
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=5))
    chosen = [data.draw(st.lists(st.sampled_from(labels), unique=True)) for _ in texts]
    form, suffix = data.draw(st.sampled_from(FORMS)), data.draw(st.sampled_from(SUFFIXES))
    separator, delimiter = data.draw(st.sampled_from(SEPARATORS)), data.draw(st.sampled_from(",;\t|"))
    is_text = not suffix.lower().startswith((".json", ".ndjson", ".parquet")) or data.draw(st.booleans())
    if form == "one-hot":
        rows = [{"text": t} | {n: int(n in c) for n in labels} for t, c in zip(texts, chosen, strict=True)]
    else:
        cells = [cell(labels, names, form, separator, is_text) for names in chosen]
        rows = [{"text": text, "labels": value} for text, value in zip(texts, cells, strict=True)]
    path = tmp_path_factory.mktemp("file") / f"rows{suffix}"
    given_format = data.draw(st.sampled_from(["auto", {"ids": "ids"}.get(form, "auto")]))
    if form == "ids" and given_format == "auto" and all(str(labels.index(n)) in labels for c in chosen for n in c):
        return  # undeclared ids that are also names are names: nothing in the file says otherwise
    try:
        write(path, rows, data.draw(st.sampled_from(ENCODINGS)), delimiter)
    except UnicodeEncodeError:
        return
    try:
        read = load_corpus("files", labels, str(path), label_format=given_format)["train"]  # type: ignore[arg-type]
    except CorpusError as error:
        assert "Remedy: " in str(error) and str(error).startswith((str(path), "labels", "files"))
        return
    assert read.texts == texts
    assert read.labels.tolist() == [[int(name in names) for name in labels] for names in chosen]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", FORMS)
def test_ordinary_files_are_not_refused(form: str, suffix: str, tmp_path: Path) -> None:
    """The property alone would also hold for a reader that refuses everything."""
    labels, chosen = ["joy", "anger", "colère"], [["joy"], ["anger", "colère"], [], ["joy", "anger"]]
    is_text = suffix[1] in "cCt"
    for separator in SEPARATORS:
        rows = [
            {"text": f"text {number}, it's"}
            | (
                {name: int(name in names) for name in labels}
                if form == "one-hot"
                else {"labels": cell(labels, names, form, separator, is_text)}
            )
            for number, names in enumerate(chosen)
        ]
        for delimiter in ",;\t|":
            write(tmp_path / f"a{suffix}", rows, "utf-8-sig", delimiter)
            chosen_format = "ids" if form == "ids" else "auto"
            read = load_corpus("files", labels, str(tmp_path / f"a{suffix}"), label_format=chosen_format)["train"]
            assert read.texts == [row["text"] for row in rows]
            assert read.labels.tolist() == [[int(name in names) for name in labels] for names in chosen]


# Kinds of faults, each with inputs of its own


def read_one(folder: Path, labels: Sequence[str], content: str, name: str = "a.csv", **options: Any) -> list[list[int]]:
    (folder / name).write_text(content, encoding="utf-8")
    return load_corpus("files", labels, str(folder / name), **options)["train"].labels.tolist()


def test_where_two_readings_fit_both_are_named(tmp_path: Path) -> None:
    content = 'text,labels\nx,"[0, 1]"\ny,"[1, 0]"\n'
    with pytest.raises(CorpusError, match=r"line 2.*'\[0, 1\]' may be a multi-hot vector or names\. Remedy"):
        read_one(tmp_path, ["0", "1"], content)
    assert read_one(tmp_path, ["0", "1"], content, label_format="multi-hot") == [[0, 1], [1, 0]]
    assert read_one(tmp_path, ["0", "1"], content, label_format="names") == [[1, 1], [1, 1]]
    for labels, cells in ((["joy"], ["[0]", "[0]"]), (["joy", "anger"], ["[1, 0]", "[0, 1]"])):
        content = "text,labels\n" + "".join(f'x,"{cell}"\n' for cell in cells)
        with pytest.raises(CorpusError, match=r"may be a multi-hot vector or ids\. Remedy"):
            read_one(tmp_path, labels, content)
    assert read_one(tmp_path, ["joy"], 'text,labels\nx,"[0]"\ny,[1]\n') == [[0], [1]]
    assert read_one(tmp_path, ["joy", "anger"], 'text,labels\nx,"[0, 1]"\ny,"[0, 0]"\n') == [[0, 1], [0, 0]]
    with pytest.raises(CorpusError, match="'0' is a number"):  # of one label, a cell may be its id or its bit
        read_one(tmp_path, ["joy"], "text,labels\nx,0\n")
    both = "text,labels\nx,a;b|c\n"
    with pytest.raises(
        CorpusError, match=r"'a;b\|c' may be 'a', 'b\|c' \(semicolons\) or 'a;b', 'c' \(vertical bars\)"
    ):
        read_one(tmp_path, ["a", "b|c", "a;b", "c"], both)
    assert read_one(tmp_path, ["a", "b|c", "a;b", "c"], both, label_separator=";") == [[1, 1, 0, 0]]


def test_ids_need_a_declaration(tmp_path: Path) -> None:
    content = "text,labels\nx,1\ny,0\n"
    with pytest.raises(CorpusError, match=r"'1' is a number.*0 is joy, 1 is anger.*--label_format ids"):
        read_one(tmp_path, ["joy", "anger"], content)
    assert read_one(tmp_path, ["joy", "anger"], content, label_format="ids") == [[0, 1], [1, 0]]
    with pytest.raises(CorpusError, match=r"line 2.*label '2' is not one of the ids 0, 1"):
        read_one(tmp_path, ["joy", "anger"], "text,labels\nx,2\n", label_format="ids")
    feature = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.ClassLabel(names=["anger", "joy"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "labels": [1, 0]}, features=feature)
    rows.to_parquet(tmp_path / "declared.parquet")
    assert load_corpus("files", ["joy", "anger"], str(tmp_path / "declared.parquet"))["train"].labels.tolist() == [
        [1, 0],
        [0, 1],
    ]
    unknown = datasets.Dataset.from_dict({"text": ["x", "y"], "labels": [1, -1]}, features=feature)
    unknown.to_parquet(tmp_path / "declared.parquet")
    with pytest.raises(CorpusError, match=r"row 2.*unknown label '-1'"):
        load_corpus("files", ["joy", "anger"], str(tmp_path / "declared.parquet"))


def test_a_mapping_declares_ids_of_a_foreign_label_set(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,0\ny,1\n")
    options = FileOptions(label_column="label")
    with pytest.raises(CorpusError, match=r"'0' is a number.*0 is admiration, 1 is joy"):
        read_labeled_file(tmp_path / "a.csv", None, ("admiration", "joy"), options)
    (tmp_path / "own.yaml").write_text("{labels: {sadness: [sadness], joy: [joy]}, ids: {0: sadness, 1: joy}}")
    rows = read_labeled_file(tmp_path / "a.csv", read_mapping(str(tmp_path / "own.yaml")), ("sadness", "joy"), options)
    assert [(row.text, row.labels) for row in rows] == [("x", ("sadness",)), ("y", ("joy",))]


def test_all_errors_of_a_file_come_at_once(tmp_path: Path) -> None:
    lines = [f"row {number},{'jy' if number % 3 else 'joy'}" for number in range(40)] + ["a,b,c", " ,joy"]
    with pytest.raises(CorpusError) as raised:
        read_one(tmp_path, ["joy"], "\n".join(["text,labels", *lines[:40]]))
    assert len(str(raised.value).splitlines()) == 11 and "and 16 more like these" in str(raised.value)
    with pytest.raises(CorpusError) as raised:
        read_one(tmp_path, ["joy"], "\n".join(["text,labels", *lines[36:]]).replace("a,b,c\n", ""))
    assert "line 3" in str(raised.value) and "line 4" in str(raised.value) and "the text is ' '" in str(raised.value)


def test_a_mistyped_path_and_an_unknown_suffix_are_named_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("book.xlsx", "notes.txt", "rows", "rows.csv.zip"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(CorpusError, match=r"is none of \.csv, \.tsv, \.jsonl, \.ndjson, \.json, \.parquet"):
            read_table(tmp_path / name)
    flags = ["--dataset", "files", "--split", "stratified", "--labels", "a", "--output_dir", str(tmp_path / "run")]
    assert main([*flags, "--data_dir", str(tmp_path / "tikets.csv")]) == 2
    assert "tikets.csv: no such file or folder. Remedy" in capsys.readouterr().err


def test_names_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    for header, shown in (
        ("text, labels", "' labels'"),
        ("\ufefftext,labels", r"'\\ufefftext'"),
        ("text,labels\u200b", r"'labels\\u200b'"),
    ):
        with pytest.raises(CorpusError, match=f"only .*{shown}"):
            read_one(tmp_path, ["joy"], f"\ufeff{header}\nx,joy\n")
    composed, decomposed = "col\u00e8re", "cole\u0300re"
    assert read_one(tmp_path, [composed], f"text,labels\nx,{decomposed}\n") == [[1]]
    assert read_one(tmp_path, [decomposed], f"text,{composed}\nx,1\n") == [[1]]


def test_encodings_are_named_only_where_they_fit(tmp_path: Path) -> None:
    path = tmp_path / "a b.csv"
    for content, wanted, unwanted in (
        ("text,labels\ncafé crème,joy\n".encode("cp1252"), "may be WINDOWS-1252", "rest of the file"),
        ("text,labels\nмне грустно,joy\n".encode("cp1251"), "encoding of the file is unknown", "1252"),
        ("text,labels\n我很高兴,joy\n".encode("gbk"), "encoding of the file is unknown", "1252"),
        ("text,labels\ncafé,joy\n".encode() * 3 + b"fa\xe7ade,joy\n", "line 7: .* correct this line", "1252"),
        ("text,labels\nx,joy\n".encode("utf-16"), r"iconv -f UTF-16 -t UTF-8 'a b\.csv'", "1252"),
        (gzip.compress(b"text,labels\nx,joy\n"), "compressed by gzip", "iconv"),
        (b"PK\x03\x04\xff\xff", "a workbook or a ZIP archive", "iconv"),
    ):
        path.write_bytes(content)
        with pytest.raises(CorpusError, match=wanted) as raised:
            read_table(path)
        assert unwanted not in str(raised.value)


def test_cells_may_be_long_and_quotes_are_blamed_only_if_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "word, " * 50_000
    (tmp_path / "a.csv").write_text(f'text,labels\n"{long}",joy\n"two\nlines, here\nand more",joy\n')
    table, places = read_table(tmp_path / "a.csv")
    assert table.text.tolist() == [long, "two\nlines, here\nand more"] and places[1].endswith("line 3")
    with caplog.at_level("WARNING"):
        read_labeled_file(tmp_path / "a.csv", None, ("joy",), FileOptions())
        assert "quote" not in caplog.text
        (tmp_path / "b.csv").write_text('text,labels\n"open,joy\nfine,joy\nend",joy\n')
        read_labeled_file(tmp_path / "b.csv", None, ("joy",), FileOptions())
    assert "line 2: 'open,joy\\nfine,joy\\nend': an unclosed quote swallows rows" in caplog.text


def test_what_may_be_swallowed_is_pointed_at_in_training_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        read_one(tmp_path, ["joy"], 'text,labels\n"a,joy\nb,joy\nc",joy\nfine,joy\n')
        assert "line 2: 'a,joy\\nb,joy\\nc': an unclosed quote swallows rows" in caplog.text
        (tmp_path / "a.tsv").write_text('text\tlabels\n"a\tb\nc"\tjoy\n')
        assert list(read_texts(tmp_path / "a.tsv")) == ['"a', 'c"']
    assert "a.tsv, line 2: an open quote is read as a sign of the text" in caplog.text


def test_evaluate_takes_the_names_that_a_file_declares(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["anger", "joy"])
    rows = datasets.Dataset.from_dict(
        {"text": ["x", "y"], "labels": [1, 0]},
        features=datasets.Features({"text": datasets.Value("string"), "labels": names}),
    )
    rows.to_parquet(tmp_path / "a.parquet")
    read = read_labeled_file(tmp_path / "a.parquet", None, ("joy", "anger"), FileOptions())
    assert [(row.text, row.labels) for row in read] == [("x", ("joy",)), ("y", ("anger",))]


def test_columns_of_zeros_and_ones_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "raw.csv").write_text("text,rater,very_unclear,joy,anger\nx,7,False,1,0\ny,8,True,0,1\n")
    with caplog.at_level("INFO"):
        rows = read_labeled_file(tmp_path / "raw.csv", None, ("joy", "anger"), FileOptions())
    assert "columns taken as labels: very_unclear, joy, anger" in caplog.text and rows[1].labels == (
        "anger",
        "very_unclear",
    )
    left = FileOptions(ignored_columns=["very_unclear"])
    rows = read_labeled_file(tmp_path / "raw.csv", None, ("joy", "anger"), left)
    assert [row.labels for row in rows] == [("joy",), ("anger",)]


def test_excel_s_own_separator_line_and_a_swallowed_file(tmp_path: Path) -> None:
    assert read_one(tmp_path, ["joy"], "sep=;\ntext;labels\nx, y;joy\n") == [[1]]
    with pytest.raises(CorpusError, match=r"line 3, column 1: unexpected end of data, from '\"open"):
        read_one(tmp_path, ["joy"], 'text,labels\nx,joy\n"open,joy\ny,joy\n')
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"text,labels\n" + b"x,joy\n" * 99)[:-9])
    with pytest.raises(CorpusError, match=r"cut\.csv\.gz cannot be read .*Remedy"):
        read_table(tmp_path / "cut.csv.gz")
    with pytest.raises(CorpusError, match="a key appears twice"):
        read_one(tmp_path, ["joy"], '{"text": "x", "labels": [], "labels": ["joy"]}\n', "a.jsonl")


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    for suffix, line in ((".csv", "{}, text,joy\n"), (".jsonl", '{{"text": "{}"}}\n'), (".txt", "{}\n")):
        path = tmp_path / f"long{suffix}"
        path.write_text(("text,more,labels\n" if suffix == ".csv" else "") + "".join(map(line.format, range(40_000))))
        tracemalloc.start()
        numbers = [next(texts) for texts in [read_texts(path)] for _ in range(3)]
        count = sum(1 for _ in read_rows(path))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert numbers == ["0", "1", "2"] and count == 40_000 and peak < 1_000_000
    with pytest.raises(TableError, match="has no column 'text', only 'said'"):
        (tmp_path / "a.tsv").write_text("said\nx\n")
        next(read_texts(tmp_path / "a.tsv"))


def test_splits_are_read_alike(tmp_path: Path) -> None:
    """One split alone could be read in another way than the others."""
    for split in SPLITS:
        rows = "x,joy\n" if split == "train" else "x,0\n"
        (tmp_path / f"{split}.csv").write_text(f"text,labels\n{rows}")
    with pytest.raises(CorpusError, match=r"validation\.csv, line 2.*unknown label '0'"):
        load_corpus("files", ["joy", "anger"], str(tmp_path))


def test_lines_before_the_header_count_in_places(tmp_path: Path) -> None:
    for start, separator, line in (("\n\r\n", ",", 4), ("sep=;\n", ";", 3), ("\nsep=|\n", "|", 4)):
        with pytest.raises(CorpusError, match=f"line {line}, column 'labels': unknown label 'jy'"):
            read_one(tmp_path, ["joy"], f"{start}text{separator}labels\nx{separator}jy\n")
        with pytest.raises(CorpusError, match=f"line {line}, column 1: unexpected end"):
            read_one(tmp_path, ["joy"], f'{start}text{separator}labels\n"x{separator}joy\n')
    with pytest.raises(CorpusError, match="line 3, column 'labels': unknown label 'jy'"):
        read_one(tmp_path, ["joy"], "\ntext\tlabels\nx\tjy\n", "a.tsv")


def test_other_line_ends_and_encodings_are_named(tmp_path: Path) -> None:
    assert read_one(tmp_path, ["joy"], "text,labels\rx,joy\r") == [[1]]
    for name, content, wanted in (
        ("a.tsv", b"text\tlabels\rx\tjoy\r", "line 1: .* only newlines end the lines of a TSV file"),
        ("a.csv", "text,labels\nx,joy\n".encode("utf-16-le"), "line 1: .* NUL characters, as UTF-16"),
        ("a.csv", "text,labels\nx,joy\n".encode("utf-32"), "line 1: the file is UTF-32"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match=f"{wanted}.*Remedy: "):
            read_table(tmp_path / name)
    (tmp_path / "long.tsv").write_text("text\t" + "x" * 200_000 + '\n"two\nlines ' + "x" * 200_000 + '"\t1\n')
    assert [len(text) for text in read_texts(tmp_path / "long.tsv")] == [200_010]


def test_a_list_in_a_cell_is_read_as_its_writer_wrote_it(tmp_path: Path) -> None:
    """JSON escapes what is not ASCII, in a list of one as in a list of two."""
    labels = ["colère", "a/b", "1.50"]
    for written, wanted in (
        (json.dumps(["colère"]), [1, 0, 0]),
        (json.dumps(["colère", "a/b"]).replace("/", "\\/"), [1, 1, 0]),
        ("[1.50]", [0, 0, 1]),
        ("[false, true, true]", [0, 1, 1]),
        ("['a/b' 'colère']", [1, 1, 0]),
    ):
        cells = io.StringIO()
        csv.writer(cells).writerow(["x", written])
        assert read_one(tmp_path, labels, f"text,labels\n{cells.getvalue()}") == [wanted]
    with pytest.raises(CorpusError, match="unknown label None"):
        read_one(tmp_path, ["None", "joy"], '{"text": "x", "labels": [null]}\n', "a.jsonl")


def test_the_remedy_for_numbers_fits_them(tmp_path: Path) -> None:
    vectors = 'text,labels\nx,"0,1,0"\ny,"1,0,0"\n'
    with pytest.raises(CorpusError, match=r"line 2.*Remedy: if they are a 0 or 1 for each label, give --label_format"):
        read_one(tmp_path, ["joy", "anger", "fear"], vectors)
    assert read_one(tmp_path, ["joy", "anger", "fear"], vectors, label_format="multi-hot") == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(CorpusError, match=r"line 3.*'01': unknown label '01'\. Did you.*correct it"):
        read_one(tmp_path, ["1", "2"], "text,labels\nx,1\ny,01\n")


def test_names_and_ids_are_there_and_told_apart(tmp_path: Path) -> None:
    composed, decomposed = "t\u00e9xt", "te\u0301xt"
    for written, wanted in ((composed, decomposed), (decomposed, composed)):
        assert read_one(tmp_path, ["joy"], f"{written},labels\nx,joy\n", text_column=wanted) == [[1]]
        assert list(read_texts(tmp_path / "a.csv", wanted)) == ["x"]
        options = FileOptions(text_column=wanted)
        assert read_labeled_file(tmp_path / "a.csv", None, ("joy",), options)[0].text == "x"
    with pytest.raises(CorpusError, match=r"column 'téxt' appears twice.*Remedy: rename one"):
        read_one(tmp_path, ["joy"], f"text,{composed},{decomposed},labels\nx,1,0,joy\n")
    for ids in (',"x",joy\n', '" ",x,joy\n'):
        with pytest.raises(CorpusError, match=r"line 2, column 'id': the id is .*Remedy: fill it in"):
            read_one(tmp_path, ["joy"], f"id,text,labels\n{ids}7,y,joy\n", id_column="id")
    with pytest.raises(CorpusError, match="line 2, column 'id': the id is nan"):
        rows = '{"id": 1, "text": "x", "labels": []}\n{"text": "y", "labels": []}\n'
        read_one(tmp_path, ["joy"], rows, "a.jsonl", id_column="id")
    with pytest.raises(CorpusError, match=r"has an empty name. Remedy"):
        read_one(tmp_path, ["joy", " "], "text,labels\nx,joy\n")


def test_texts_of_utf_16_without_its_mark_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("hello\nthere\n".encode("utf-16-le"))
    with pytest.raises(TableError, match=r"line 1: .* NUL characters, as UTF-16.*Remedy: save it as UTF-8"):
        list(read_texts(tmp_path / "a.txt"))


def test_labels_that_differ_in_spaces_are_one(tmp_path: Path) -> None:
    """Rows of the one would train the other."""
    for other in ("joy ", "\u00a0joy"):
        with pytest.raises(CorpusError, match=r"joy', .*is listed twice. Remedy"):
            read_one(tmp_path, sorted(["joy", other], reverse=True), "text,labels\nx,joy\n")
    assert read_one(tmp_path, [" joy", "fear"], "text,labels\nx,joy\n") == [[1, 0]]
    with pytest.raises(CorpusError, match=r"label_separator is empty. Remedy: give the sign"):
        read_one(tmp_path, ["joy"], "text,labels\nx,joy\n", label_separator="")


def test_one_label_of_zeros_and_ones_is_no_id(tmp_path: Path) -> None:
    content = "text,labels\nx,1\ny,0\n"
    with pytest.raises(CorpusError, match=r"Remedy: if they are a 0 or 1 .* multi-hot; or write names$"):
        read_one(tmp_path, ["toxic"], content)
    assert read_one(tmp_path, ["toxic"], content, label_format="multi-hot") == [[1], [0]]


def test_a_column_of_labels_and_columns_of_zeros_and_ones_must_agree(tmp_path: Path) -> None:
    content = "text,labels,joy,fear\nx,joy,1,0\ny,{},0,1\n"
    with pytest.raises(CorpusError, match=r"line 3: the labels are 'joy' in .*'labels', and 'fear' in the 0/1 columns"):
        read_one(tmp_path, ["joy", "fear"], content.format("joy"))
    assert read_one(tmp_path, ["joy", "fear"], content.format("fear")) == [[1, 0], [0, 1]]
    assert read_one(tmp_path, ["joy"], content.format("")) == [[1], [0]]
    assert read_one(tmp_path, ["joy", "fear"], "text,labels,joy,fear\nx,joy,.9,.1\n") == [[1, 0]]  # scores
    (tmp_path / "a.csv").write_text(content.format("joy"))
    with pytest.raises(CorpusError, match="in the 0/1 columns"):
        read_labeled_file(tmp_path / "a.csv", None, ("joy", "fear"), FileOptions())
    ignored = FileOptions(ignored_columns=["joy", "fear"])
    assert len(read_labeled_file(tmp_path / "a.csv", None, ("joy", "fear"), ignored)) == 2


def test_what_stands_in_place_of_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"first line is a row with the label 'joy', .*Remedy: write a first line"):
        read_one(tmp_path, ["joy", "fear"], "I am glad,joy\nI am afraid,fear\n")
    with pytest.raises(CorpusError, match=r"no column 'text', only 'said', 'joy', 'fear'"):
        read_one(tmp_path, ["joy", "fear"], "said,joy,fear\nx,1,0\n")
    for content in ('{"text": {"0": "x"}, "labels": {"0": "joy"}}', '{"data": [{"text": "x", "labels": "joy"}]}'):
        with pytest.raises(CorpusError, match=r"line 1: .* whole columns, not one row. Remedy: write an object for"):
            read_one(tmp_path, ["joy"], content, "a.json")
