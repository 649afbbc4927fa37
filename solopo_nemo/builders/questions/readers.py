"""Readers of documents: plain text, Markdown, HTML, PDF and Word files give text with headings as lines of `#`."""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from solopo_nemo.runtime.errors import UserError, require

LARGEST = 256 * 2**20
"""Bytes of the largest file that is read, also after decompression."""
_DECLARED = re.compile(rb"""<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.I)
_BEGINS = {
    b"%pdf-": "a PDF: name it .pdf",
    b"{\\rtf": "RTF: save it as .docx",
    b"<!doctype html": "HTML: name it .html",
    b"<html": "HTML: name it .html",
}
"""First bytes of files that are no plain text, in lower case."""
_HEADING = re.compile(r"h([1-6])")
_FURNITURE = frozenset({"nav", "header", "footer", "aside"})
_NO_TEXT = frozenset({"script", "style", "head", "noscript", "template", "select", "button", "svg", "iframe"})
_INLINE = re.compile(
    "a|abbr|b|bd[io]|big|br|cite|code|data|dfn|del|em|font|i|img|ins|kbd|mark|q|ruby|r[btp]|s|samp|small|span|strike|"
    "strong|su[bp]|t[dht]|time|u|var|wbr"
)
_NO_WORDS = frozenset({"pPr", "moveFrom", "Fallback", "rt"})
_WORD_SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "p": "\n"}
"""Elements of Word files: without words of their own, and what stands for others."""
_PAGE_ENDS = 2
"""Lines at each end of a PDF's page that may be its header or footer."""


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
        name: Unique name: the path below the folder that was given, or the location of a row.
        title: Title in one line; the file's name where the document has none.
        text: Its text, not blank, with `\\n` line ends.
        furniture: Number of page headers, footers and menus that the reader left out.
    """

    name: str
    title: str
    text: str
    furniture: int = 0


def read_file(path: Path, name: str) -> Document:
    """Read a file by its suffix, one of `READERS`.

    Raises:
        UserError: The file is empty, too large, damaged, encrypted, not in a known encoding, or holds no text.
    """
    try:
        size = path.stat().st_size
        require(path.is_file(), f"{path}: a pipe or a device, not a file")
        data = path.read_bytes() if size <= LARGEST else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if size > LARGEST:
        raise UserError(f"{path}: {size / 2**20:.0f} MiB, {LARGEST >> 20} are the most of one document: split it")
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer, not the file itself: git lfs pull fetches it")
    try:
        title, text, furniture = READERS[path.suffix.lower()](data, path)
    except UserError:
        raise
    except Exception as error:  # the libraries raise many types for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        way = "save or print it to a new one, without a password"
        raise UserError(f"{path}: not a readable {path.suffix.lower()} file ({reason}): {way}") from error
    title = " ".join((title.strip() or path.stem.replace("_", " ")).split())
    # a PDF can give half a character, and the name of a file be no UTF-8
    name, title, text = (part.encode("utf-8", "backslashreplace").decode() for part in (name, title, text))
    if not text.strip():
        scan = ": a scan? ocrmypdf adds the text" if path.suffix.lower() == ".pdf" else ""
        raise UserError(f"{path}: holds no text{scan}")
    return Document(name, title, text, furniture)


def _decoded(data: bytes, path: Path, declared: str = "utf-8-sig") -> str:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else declared
    try:
        text = data.decode(encoding)
    except LookupError as error:
        raise UserError(f"{path}: declares the unknown encoding {declared}: save it as UTF-8") from error
    except UnicodeDecodeError as error:
        way = f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} converts a Western European one"
        place = f"byte 0x{data[error.start]:02x} at {error.start}"
        raise UserError(f"{path}: not {declared.removesuffix('-sig').upper()} text ({place}): {way}") from error
    if "\0" in text:
        raise UserError(f"{path}: holds NUL characters, not text: give it the suffix of its kind, or leave it out")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(data: bytes, path: Path) -> tuple[str, str, int]:
    begin = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if kind := next((kind for first, kind in _BEGINS.items() if begin.startswith(first)), ""):
        raise UserError(f"{path}: holds {kind}")
    text = _decoded(data, path)
    title = re.search(r"^#\s+(.+)$", text, re.M) if path.suffix.lower() in (".md", ".markdown") else None
    return title[1] if title else "", text, 0


def _html(data: bytes, path: Path) -> tuple[str, str, int]:
    html = _library("lxml.html", path)
    declared = _DECLARED.search(data[:4096])
    try:
        text = _decoded(data, path)
    except UserError:
        if declared is None:
            raise
        text = _decoded(data, path, declared[1].decode())
    if not re.search("<[a-zA-Z!]", text):
        return "", text, 0
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True)  # else it ends in silence at 10 MB of one text
    root = html.document_fromstring(text.encode(), parser=parser)
    if fatal := [entry.message for entry in parser.error_log if entry.level_name == "FATAL"]:
        raise ValueError(fatal[0])
    blocks = _Blocks()
    blocks.read(root)
    title = root.findtext(".//title") or next((b.lstrip("# ") for b in blocks.found if b.startswith("# ")), "")
    return title, "\n\n".join(blocks.found), blocks.furniture


class _Blocks:
    """Collects the blocks of an HTML tree: headings, paragraphs, list items and table rows."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.furniture = 0
        self._open: list[str] = []
        self._mark = ""

    def read(self, root: Any) -> None:
        from lxml import etree

        walker = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
        for event, element in walker:
            tag = element.tag if isinstance(element.tag, str) else ""
            if event == "start":
                furniture = tag in _FURNITURE and not any(True for _ in element.iterancestors("article", "main"))
                if furniture or tag in _NO_TEXT:
                    self.furniture += furniture and bool("".join(element.itertext()).strip())
                    walker.skip_subtree()
                    self._flush()
                    continue
                self._enter(tag)
                self._open.append(element.text or "")
                continue
            if tag in ("td", "th") and element.getnext() is not None:
                self._open.append(" | ")
            elif tag and not _INLINE.fullmatch(tag):
                self._flush()
            self._open.append(("\n" if tag == "br" else "") + (element.tail or ""))
        self._flush()

    def _enter(self, tag: str) -> None:
        if _INLINE.fullmatch(tag):
            return
        self._flush()
        heading = _HEADING.fullmatch(tag)
        self._mark = "#" * int(heading[1]) + " " if heading else "- " if tag == "li" else ""

    def _flush(self) -> None:
        if text := " ".join("".join(self._open).split()):
            self.found.append(self._mark + text)
            self._mark = ""
        self._open.clear()


def _pdf(data: bytes, path: Path) -> tuple[str, str, int]:
    pypdf = _library("pypdf", path)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # a damaged file is refused in one line
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise UserError(f"{path}: encrypted: save it without a password (qpdf --decrypt --password=...)")
    pages = [page.extract_text().splitlines() for page in reader.pages]
    title = str((reader.metadata and reader.metadata.title) or "")
    blank = sum(not any(map(str.strip, page)) for page in pages)
    if len(pages) > 2 * (len(pages) - blank) > 0:
        raise UserError(f"{path}: {blank} of {len(pages)} pages hold no text: scans? ocrmypdf --skip-text adds it")
    furniture = _repeated_lines(pages)
    kept = [[line for place, line in enumerate(page) if not _is_furniture(page, place, furniture)] for page in pages]
    text = "\n".join(line for page in kept for line in page)
    return title, re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text), sum(map(len, pages)) - sum(map(len, kept))


def _line_form(line: str) -> str:
    return re.sub(r"\d+", "0", line.strip())


def _repeated_lines(pages: list[list[str]]) -> set[str]:
    """The first and last lines that at least three pages, and half of them, have but for their numbers."""
    ends = Counter(form for page in pages for form in {*map(_line_form, page[:_PAGE_ENDS] + page[-_PAGE_ENDS:])})
    return {form for form, count in ends.items() if count >= max(3, len(pages) / 2)}


def _is_furniture(page: list[str], place: int, furniture: set[str]) -> bool:
    at_end = place < _PAGE_ENDS or place >= len(page) - _PAGE_ENDS
    return at_end and _line_form(page[place]) in furniture


def _docx(data: bytes, path: Path) -> tuple[str, str, int]:
    docx = _library("docx", path)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST:
        raise UserError(f"{path}: {size / 2**20:.0f} MiB when unpacked, {LARGEST >> 20} are the most: split it")
    document = docx.Document(io.BytesIO(data))
    outer = document.element.body.xpath(".//w:p[not(ancestor::w:tr or ancestor::w:p)] | .//w:tr[not(ancestor::w:tr)]")
    blocks = (_word_block(element, document, docx.text.paragraph.Paragraph) for element in outer)
    return str(document.core_properties.title or ""), "\n\n".join(filter(None, blocks)), 0


def _word_block(element: Any, document: Any, paragraph: Any) -> str:
    """The text of a paragraph or a table row."""
    if element.tag.endswith("}tr"):
        cells = (" ".join(_word_text(cell).split()) for cell in element.xpath(".//w:tc[not(ancestor::w:tc)]"))
        return " | ".join(filter(None, cells))
    text = _word_text(element).strip()
    level = re.fullmatch(r"(?:Heading (\d)|Title)", paragraph(element, document).style.name or "")
    return "#" * (min(int(level[1] or 1), 6)) + " " + " ".join(text.split()) if level and text else text


def _word_text(element: Any) -> str:
    """All text below an element, also in fields, content controls, text boxes and insertions."""
    parts = []
    for child in element.iterchildren("*"):
        name = child.tag.rpartition("}")[2]
        if name == "t":
            parts.append(child.text or "")
        elif name not in _NO_WORDS:
            parts += [_word_text(child), _WORD_SIGNS.get(name, "")]
    return "".join(parts)


def _library(name: str, path: Path) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: {error.name} is not installed, which reads it: pip install -r requirements/documents.txt"
        ) from error


READERS: dict[str, Callable[[bytes, Path], tuple[str, str, int]]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), _plain),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    ".pdf": _pdf,
    ".docx": _docx,
}
"""Suffix in lower case -> function that gives title, text and the number of left out parts."""
