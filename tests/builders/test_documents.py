"""Documents as users have them: what is read of every kind of file, what is refused, and how a text is cut."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import docx
import pypdf
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st

from solopo_nemo.builders.contexts.question import BadRow
from solopo_nemo.builders.questions import readers
from solopo_nemo.builders.questions.documents import Documents
from solopo_nemo.builders.questions.passages import Passages, cut
from solopo_nemo.builders.questions.readers import Document, read_file
from solopo_nemo.runtime.errors import UserError

PAGE = """<!doctype html><html><head><title>The  Whale</title><style>p {}</style></head><body>
<nav>Home</nav><header>Site</header><article><form><header><h1>Chapter <i>One</i></h1></header>
<p>Call me<br>Ishmael &amp; <b>no</b>body.</p><ul><li>oil</li><li>bone</li></ul>
<table><tr><td>Ship</td><td>Pequod</td></tr></table></form><!-- no --><script>x()</script></article> end
<footer>(c)</footer></body></html>"""
BLOCKS = ["# Chapter One", "Call me Ishmael & nobody.", "- oil", "- bone", "Ship | Pequod", "end"]


def pdf(*pages: list[str], password: str = "") -> bytes:
    """A file whose pages have these lines."""
    writer = pypdf.PdfWriter()
    for lines in pages:
        page = writer.add_blank_page(300, 300)
        shown = "".join(f"1 0 0 1 10 {280 - 14 * row} Tm ({line}) Tj " for row, line in enumerate(lines))
        stream = pypdf.generic.StreamObject()
        stream.set_data(f"BT /F1 12 Tf {shown} ET".encode())
        page[pypdf.generic.NameObject("/Contents")] = writer._add_object(stream)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        name = pypdf.generic.NameObject
        fonts = pypdf.generic.DictionaryObject(
            {name("/F1"): pypdf.generic.DictionaryObject({name(k): name(v) for k, v in font.items()})}
        )
        page[name("/Resources")] = pypdf.generic.DictionaryObject({name("/Font"): fonts})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def word(fill: Callable[[docx.document.Document], object]) -> bytes:
    document, out = docx.Document(), io.BytesIO()
    document.core_properties.title = ""
    fill(document)
    document.save(out)
    return out.getvalue()


def filled(document: docx.document.Document) -> None:
    document.add_heading("Whales", 2)
    document.add_paragraph("Call me Ishmael.")
    row = document.add_table(1, 2).rows[0].cells
    row[0].text, row[1].text = "Ship", "Pequod"


WORDS_OF_WORD = """<w:p %s xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"
 xmlns:v="urn:schemas-microsoft-com:vml"><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:ins><w:r><w:t>in</w:t></w:r></w:ins>
<w:del><w:r><w:delText>out</w:delText></w:r></w:del><w:moveFrom><w:r><w:t>gone</w:t></w:r></w:moveFrom>
<w:fldSimple><w:r><w:t xml:space="preserve"> field</w:t></w:r></w:fldSimple>
<w:sdt><w:sdtContent><w:r><w:tab/><w:t>control</w:t></w:r></w:sdtContent></w:sdt><m:oMath><m:r><m:t>=x</m:t></m:r></m:oMath>
<w:r><w:pict><v:textbox><w:txbxContent><w:p><w:r><w:t>, box</w:t></w:r></w:p></w:txbxContent></v:textbox></w:pict></w:r></w:p>"""


def odd(document: docx.document.Document) -> None:
    """Text in all places that Word has for it: a content control, an insertion, a field, a text box, nested tables."""
    whole = parse_xml(f"<w:sdt {nsdecls('w')}><w:sdtContent>{WORDS_OF_WORD % nsdecls('w')}</w:sdtContent></w:sdt>")
    document.element.body.insert(0, whole)
    table = document.add_table(2, 3)
    for cell, text in zip(table.rows[0].cells, ("Yes", "Yes", "No"), strict=True):
        cell.text = text
    table.rows[1].cells[0].merge(table.rows[1].cells[1]).text = "both"
    table.rows[1].cells[2].add_table(1, 1).rows[0].cells[0].text = "inner"


def zipped(size: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(size))
    return out.getvalue()


RUNNING = [
    ["The Whale", *[word * 3 + " whale-", f"bone {word}", "same"], word, word + word, str(page)]
    for page, word in enumerate("abcd")
]
READ = [
    ("a_tale.txt", "\ufeffOne.\r\n\r\nTwo.".encode(), "a tale", "One.\n\nTwo."),
    ("wide.TXT", "Wal\u00e9".encode("utf-16"), "wide", "Walé"),
    ("notes.md", b"intro\n# The  Title\n\ntext", "The Title", "intro\n# The  Title\n\ntext"),
    ("page.html", PAGE.encode(), "The Whale", "\n\n".join(BLOCKS)),
    ("old.htm", "<meta charset=latin-1><p>Wal\u00e9".encode("latin-1"), "old", "Walé"),
    ("strict.xhtml", b'<?xml version="1.0" encoding="utf-8"?><html><body><h2>A</h2>b</body></html>', "strict", "## A\n\nb"),
    ("bare.html", b"no tags", "bare", "no tags"),
    ("book.pdf", pdf(*RUNNING), "book", "\n".join(f"{w * 3} whalebone {w}\nsame\n{w}\n{w}{w}" for w in "abcd")),
    ("owner.pdf", pdf(["kept"], password=""), "owner", "kept"),
    ("memo.docx", word(filled), "memo", "## Whales\n\nCall me Ishmael.\n\nShip | Pequod"),
    ("odd.docx", word(odd), "odd", "in field\tcontrol=x, box\n\nYes | Yes | No\n\nboth | inner"),
    ("deep.html", b"<div>" * 400 + b"a" + b"</div>" * 400 + b"<p>b", "deep", "a\n\nb"),
    ("inline.html", b"<p>a<img src='data:" + b"A" * (10 << 20) + b"'><p>b", "inline", "a\n\nb"),
    ("line\nend \udcff.txt", b"a", "line end \\udcff", "a"),
    ("half.pdf", pdf(["a"], [], ["b"], []), "half", "a\nb"),
]  # fmt: skip
REFUSED = [
    ("empty.txt", b"", "holds no text"),
    ("blank.md", b" \n\n", "holds no text"),
    ("latin.txt", "Wal\u00e9".encode("latin-1"), r"not UTF-8 text \(byte 0xe9 at 3\): iconv"),
    ("latin.html", "<p>Wal\u00e9".encode("latin-1"), "not UTF-8 text"),
    ("odd.html", b"<meta charset=klingon><p>\xe9", "unknown encoding klingon"),
    ("binary.txt", b"a\0b", "NUL characters"),
    ("comment.html", b"<!-- only -->", r"not a readable \.html file"),
    ("menu.html", b"<nav>Home</nav>", "holds no text"),
    ("pointer.pdf", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ("locked.pdf", pdf(["x"], password="secret"), "encrypted: save it without a password"),
    ("scan.pdf", pdf([]), "holds no text: a scan"),
    ("mostly.pdf", pdf(["a"], [], []), "2 of 3 pages hold no text: scans"),
    ("deeper.html", b"<p>a" + b"<div>" * 5000, "Excessive depth"),
    ("pdf.txt", b"%PDF-1.7 x", "holds a PDF: name it"),
    ("rtf.md", rb"{\rtf1 x}", "holds RTF: save it"),
    ("html.txt", b"\xef\xbb\xbf\n<!DOCTYPE html><p>a", "holds HTML: name it"),
    ("text.pdf", b"hello", r"not a readable \.pdf file"),
    ("cut.pdf", pdf(["x"])[:200], r"not a readable \.pdf file"),
    ("old.docx", b"\xd0\xcf\x11\xe0 an older file", r"not a readable \.docx file .*save or print it"),
    ("other.docx", zipped(10), r"not a readable \.docx file"),
    ("bomb.docx", zipped(3 << 20), "3 MiB when unpacked"),
    ("huge.txt", b"a" * (2 << 20), "2 MiB, 1 are the most"),
]


@pytest.mark.parametrize(("name", "data", "title", "text"), READ, ids=[ascii(row[0]) for row in READ])
def test_what_is_read(tmp_path: Path, name: str, data: bytes, title: str, text: str) -> None:
    (tmp_path / name).write_bytes(data)
    document = read_file(tmp_path / name, name)
    assert (document.title, document.text) == (title, text)
    assert document.furniture == {"page.html": 3, "book.pdf": 8}.get(name, 0)


@pytest.mark.parametrize(("name", "data", "why"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, why: str) -> None:
    monkeypatch.setattr(readers, "LARGEST", 1 << 20)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=why) as refused:
        read_file(tmp_path / name, name)
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_a_pipe_among_documents_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt: a pipe or a device"):
        read_file(tmp_path / "a.txt", "a.txt")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf(["x"]))
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(UserError, match=r"pypdf is not installed.*pip install -r requirements/documents.txt"):
        read_file(tmp_path / "a.pdf", "a.pdf")


def test_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text("B")
    (folder / "sub" / "a.md").write_text("A")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "again.txt").symlink_to(folder / "b.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    (folder / ".hidden.txt").write_text("no")
    (folder / "picture.png").write_bytes(b"no")
    (folder / "bad.txt").write_bytes(b"\xff")
    rows = [{"title": "T", "text": "C"}, {"text": "D"}, {"title": "no text"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = Documents([folder])
    for _ in range(2):
        found = [*documents]
        assert [(one.title, one.text) for one in found if isinstance(one, Document)] == [
            ("again", "B"), ("T", "C"), ("", "D"), ("a", "A")
        ]  # fmt: skip
        errors = [one.error for one in found if isinstance(one, BadRow)]
        assert ["bad.txt" in errors[0], "gone.txt" in errors[1], "rows.jsonl:3" in errors[2]] == [True] * 3
    assert documents.others == {".png": 1}
    assert len({one.name for one in documents if isinstance(one, Document)}) == 4
    for name, why in (("none", "check the path"), ("picture.png", "unknown kind of document")):
        with pytest.raises(UserError, match=why):
            Documents([folder / name])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no documents in this folder"):
        Documents([tmp_path / "empty"])


def test_the_output_in_a_folder_is_no_document(tmp_path: Path) -> None:
    for name in ("a.txt", "q.jsonl", "q.jsonl.passages.jsonl", "q.jsonl.report.json", "q.jsonl2.txt"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    found = [one.name for one in Documents([tmp_path], out=tmp_path / "q.jsonl") if isinstance(one, Document)]
    assert found == ["a.txt", "q.jsonl2.txt"]


def test_a_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"title": "A", "text": "One.\r\n"}, {"title": None, "text": "Two."}]).save_to_disk(
        tmp_path / "saved"
    )
    found = [one for one in Documents([tmp_path / "saved"]) if isinstance(one, Document)]
    assert [(one.title, one.text) for one in found] == [("A", "One.\n"), ("", "Two.")]


def words(text: str) -> int:
    return len(text.split())


PIECES = st.sampled_from(
    ["# Head\n", "Chapter IV\n", "\n\n", "\n", " ", "One two three. ", "“Ja!” ", "他说。", "a" * 40, "\u2028", "\r", "é", "1.5 "]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=40).map("".join), st.integers(1, 30))
def test_joined_passages_are_the_text(text: str, budget: int) -> None:
    passages = cut(text, budget, len)
    assert "".join(passages) == text
    assert all(0 < len(passage) <= budget for passage in passages)


def test_cuts_follow_the_structure() -> None:
    text = "# One\n\nA b c. D e f.\n\nG h i j.\n\n# Two\n\n" + "K l m n. O p q r. " * 2
    assert cut(text, 20, words) == [text[: text.index("# Two")], text[text.index("# Two") :]]
    assert cut(text, 8, words) == [
        "# One\n\nA b c. D e f.\n\n", "G h i j.\n\n", "# Two\n\nK l m n. ", "O p q r. K l m n. ", "O p q r. "
    ]  # fmt: skip
    # a title page goes on into the first chapter
    assert len(cut("# Book\n\nby me\n\n# One\n\n" + "a " * 30, 40, words)) == 1
    novel = "THE WHALE\n\nCHAPTER 1. Loomings.\n\n" + "a " * 30 + "\n\nCHAPTER 2. The Bag.\n\n" + "b " * 30
    assert [passage[:9] for passage in cut(novel, 40, words)] == ["THE WHALE", "CHAPTER 2"]


@pytest.mark.parametrize(
    "text",
    [
        "မြန်မာဘာသာစကားသည် မြန်မာနိုင်ငံ၏ ရုံးသုံး ဘာသာစကားဖြစ်သည်။ ",
        "हिन्दी विश्व की एक प्रमुख भाषा है। ",
        "Tiê\u0301ng Viê\u0323t la\u0300 ngôn ngu\u031b\u0303. ",
        "他说他明天要去北京。",
    ],
)
def test_scripts_with_many_marks_are_no_boilerplate_and_end_in_sentences(text: str) -> None:
    passages = Passages([Document("a", "A", text * 2)], len(text) + 1, len)
    assert [one.text for one in passages.kept] == [text] and len(passages.left_out) == 1


def test_boilerplate_and_near_duplicates_are_left_out() -> None:
    licence = "Permission is granted to copy this text, with all of its parts, to anybody who asks for it."
    tale = "The old captain walked along the shore of Nantucket and counted nine ships that came home " * 3
    documents = [
        Document("a", "A", f"{tale}first.\n\n{licence}"),
        Document("b", "B", f"{tale}last.\n\n{licence}"),
        Document("c", "C", f"1 2 3 4 5 6 7 8 9 10 11 12\n\n{licence}\n\n" + "Another tale about a tower in Pisa. " * 8),
    ]
    passages = Passages(documents, 60, words)
    assert [(one.document, one.text[:3]) for one in passages.kept] == [("a", "The"), ("c", "Ano")]
    assert {(one.document, one.number, why) for one, why in passages.left_out} == {
        ("a", 1, "boilerplate"), ("b", 1, "boilerplate"), ("c", 0, "boilerplate"), ("b", 0, "near_duplicate")
    }  # fmt: skip
    everything = [*passages.kept, *(one for one, _ in passages.left_out)]
    for document in documents:
        own = sorted((one for one in everything if one.document == document.name), key=lambda one: one.number)
        assert "".join(one.text for one in own) == document.text
