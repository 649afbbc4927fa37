"""The normal form of a text, in which answers are compared, and the search of an answer in a text.

Equal are writings that differ in case, accents, articles, punctuation, apostrophes, hyphens, initials, thousands
separators, or in the digits of a script. An answer is found as whole words: not inside a longer word or number. In
scripts without spaces every character is a word; a kana with its marks, and a number, are one.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import regex

from solopo_nemo.runtime.paths import ASSETS

RULE = 2
"""Version of the rule by which answers are compared. It is stored with pairs and scores. Rule 1 found an answer of
four or more letters inside a longer word."""

WORDS: dict[str, Any] = json.loads((ASSETS / "answer_words.json").read_text(encoding="utf-8"))
"""Words of the rule: other writings of letters, numerals, yes and no, and refusals in other languages than English."""

_JOIN, _POINT = "~", "\N{HYPHENATION POINT}"
"""In a form: a border that may be left out ("spider~man"), and a point that may separate thousands ("12‧500")."""

_HAN_NUMERALS = "〇零一二三四五六七八九十百千万萬亿億兆两兩"
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_NUMBER = rf"\d+(?:[.:^+⁄{_POINT}]-?\d+)*"
_SIGN = r"(?:(?<![^\s(:=,$€£])-)?"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]"
_WORD = regex.compile(
    rf"""{_SIGN}{_NUMBER}[{_HAN_NUMERALS}만억조천]+[\d{_HAN_NUMERALS}]*
    | [{_HAN_NUMERALS}][\d{_HAN_NUMERALS}]*
    | [\p{{Hiragana}}\p{{Katakana}}][\u3099\u309aーぁぃぅぇぉゃゅょゎァィゥェォャュョヮ]*
    | [{_UNSPACED}]\p{{M}}*
    | {_SIGN}{_NUMBER}{_LETTER}*
    | {_LETTER}+(?:(?<=\p{{L}})(?:\+\+|[+\#])(?!\w))?""",
    regex.VERBOSE | regex.VERSION1,
)
# the same for a text of ASCII, in half the time
_ASCII_WORD = regex.compile(rf"{_SIGN}{_NUMBER}[A-Za-z\d]*|[A-Za-z][A-Za-z\d]*(?:(?<=[A-Za-z])(?:\+\+|[+#])(?!\w))?")
_UNITS = "am|pm|km|kg|cm|mm|mg|ml|mi|ft|lbs?|gb|mb|kb|tb|mph|kmh|k?hz|mhz|ghz|kw|mw|gw|kwh"
_LETTERED = "Class|Grade|Group|Hepatitis|Level|Model|Part|Plan|Section|Series?|Type|Vitamin"
_REWRITTEN = [
    (regex.compile(pattern), new)
    for pattern, new in (
        # thousands: 1,234,567 and 1,00,000; 1'234; 1 234; 1.234.567 and 1.234,5; a single point may be a decimal one
        (r"(?<![\d.,])\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d|,\d)", ","),
        (r"(?<![\d.,])\d{1,3}(?:'\d{3})+(?!\d)", "'"),
        (r"(?<![\d.,]|\d )\d{1,3}(?: \d{3})+(?! ?\d)", " "),
        (r"(?<![\d.,])\d{1,3}(?:(?:\.\d{3}){2,}(?!\d|\.\d)|(?:\.\d{3})+(?=,\d))", "."),
        (r"(?<![\d.,])\d{1,3}\.\d{3}(?![\d.])", _POINT),
        # 1,5 is 1.5; 1/2 and 2 1/2 are one number, 1/2/2020 and 2019/20 are several; 5km is 5 km; m^2 is m2; & is and
        (r"(?<![\d.,])(\d+),(\d{1,2})(?!\d|[.,]\d)", r"\1.\2"),
        (r"(?<![\d/])(\d{1,3})/(\d{1,3})(?![\d/])", r"\1⁄\2"),
        (r"(?<=(?<!\d)\d{1,3}) (?=\d{1,2}⁄)", "+"),
        (rf"(?<=\d)(?=(?:{_UNITS})\b)", _JOIN),
        (r"(?<=[^\W\d])\^(?=\d)", ""),
        (r"(?<=\s)&(?=\s)", "and"),
        # an article before a word; the A of "Serie A club" and "A." is none
        (rf"\b(?:[Aa]n|AN|[Tt]he|THE|a|(?<!\w )A|(?<!\b(?:{_LETTERED}) )A(?! \p{{Ll}}))\s+(?=[^\w\s]*\w)", ""),
    )
]
_SUPERSCRIPTS = regex.compile(r"(?<=\d)[⁺⁻]?[⁰¹²³⁴-⁹]+")
_FRACTIONS = regex.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
# accents go, marks that make another letter stay: those of kana, Indic scripts and й
_ACCENTS = regex.compile(
    r"(?<=[\p{Latin}\p{Greek}\p{Arabic}\p{Hebrew}])\p{M}+|(?<=[еЕ])\u0308|(?<=[аеиоуыэюяАЕИОУЫЭЮЯ])\u0301"
)
_INVISIBLE = regex.compile(r"[\p{Cf}™®©℠\u0640\ufe0f]")
_TABLE = str.maketrans({sign: plain for plain, signs in WORDS["letters"].items() for sign in signs})
_JOINERS = frozenset("-'.&" + _JOIN)
_PREFIXES, _ONES, _TEENS, _TENS, _SCALES = (
    frozenset(WORDS[name].split()) for name in ("joined_prefixes", "ones", "teens", "tens", "scales")
)
_BELOW = _ONES | _TENS | _TEENS


def searchable(text: str) -> str:
    """Return the form in which :func:`holds` searches: the words, with a mark at each border that may be left out."""
    word = _ASCII_WORD if text.isascii() else _WORD
    if word is _WORD:
        text = _plain(text)
    for pattern, new in _REWRITTEN:
        # a separator alone is taken out of the number, or replaced by the point
        if new in (",", "'", " ", "."):
            text = pattern.sub(lambda match, mark=new: match.group().replace(mark, ""), text)
        elif new == _POINT:
            text = pattern.sub(lambda match: match.group().replace(".", _POINT), text)
        else:
            text = pattern.sub(new, text)
    words = list(word.finditer(text))
    if not words:
        return " ".join(character for character in text if unicodedata.category(character) in ("So", "Sc"))
    parts = [before := words[0].group()]
    for left, right in pairwise(words):
        gap, after = text[left.end() : right.start()], right.group()
        parts += [" " if gap == " " and len(before) > 1 else _border(before, gap, after), after]
        before = after
    return "".join(parts).casefold()


def normalize(text: str) -> str:
    """Return the normal form: lower-case words with one space between.

    Two rules differ from SQuAD's: punctuation separates words ("US-based" becomes "us based"), and acronyms lose their
    dots ("U.S." becomes "us"). A text without letters and digits becomes its symbols, such as emoji, or empty.
    """
    return normal_of(searchable(text))


def normal_of(form: str) -> str:
    """Return the normal form of a text in the form of :func:`searchable`."""
    return _readings(form)[0]


def holds(form: str, answers: Iterable[str]) -> bool:
    """True if a text contains one of the answers as whole words; all are in the form of :func:`searchable`."""
    texts = [f" {reading} " for reading in _readings(form)]
    for answer in answers:
        for wanted in _readings(answer):
            if wanted and any(f" {wanted} " in text and _stands_alone(text, wanted) for text in texts):
                return True
    return False


def _plain(text: str) -> str:
    """Return a text with plain marks, digits and letters."""
    text = _FRACTIONS.sub(" ", _SUPERSCRIPTS.sub(lambda match: "^" + match.group(), _INVISIBLE.sub("", text)))
    text = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.translate(_TABLE)).translate(_TABLE))
    text = regex.sub(r"[\p{Nd}--0-9]", lambda match: str(unicodedata.decimal(match.group())), text, flags=regex.V1)
    return unicodedata.normalize("NFC", text)


def _border(left: str, gap: str, right: str) -> str:
    """Return what separates two words of a form: nothing, a space, or a border that may be left out."""
    single = len(left) == len(right) == 1 and left.isalpha() and right.isalpha()
    if (gap == "." and single) or (gap == "-" and left.casefold() in _PREFIXES):
        return ""
    initials = single or (gap == ". " and len(left) == 2 and len(right) == 1)
    if gap in (". ", " ") and initials and left[0].isupper() and right.isupper():
        return _JOIN
    letters = left[-1:].isalpha() if gap != "-" else not (left.isdigit() and right[:1].isdigit())
    return _JOIN if gap == _JOIN or (gap in _JOINERS and letters and right[:1].isalnum()) else " "


def _readings(form: str) -> tuple[str, ...]:
    if _JOIN not in form and _POINT not in form:
        return (form,)
    return form.replace(_JOIN, " ").replace(_POINT, "."), form.replace(_JOIN, "").replace(_POINT, "")


def _stands_alone(text: str, wanted: str) -> bool:
    """True if an occurrence of the words is not part of a longer number, as "five" is of "twenty five"."""
    words = wanted.split()
    if not (_numeral(words[0]) or _numeral(words[-1])):
        return True
    start = text.find(f" {wanted} ")
    while start >= 0:
        before, after = text[:start].split(" ")[-2:], text[start + len(wanted) + 2 :].split(" ")[:2]
        if not (_one_number([*before, words[0]], words[0]) or _one_number([words[-1], *after], words[-1])):
            return True
        start = text.find(f" {wanted} ", start + 1)
    return False


def _one_number(words: list[str], inner: str) -> bool:
    """True if a word and its neighbour, or the one beyond an "and", are parts of one number."""
    outer = [word for word in (words[:-1] if words[-1] is inner else words[1:]) if word]
    if not outer:
        return False
    first = words[-1] is inner
    near = outer[-1] if first else outer[0]
    if near == "and" and len(outer) == 2:
        left, right = (outer[0], inner) if first else (inner, outer[1])
        return left in _SCALES and right in _BELOW
    left, right = (near, inner) if first else (inner, near)
    if right in _SCALES:
        return _numeral(left) and not (first and left in ("one", "1"))
    return right in _BELOW and (left in _SCALES or (left in _TENS and right in _ONES))


def _numeral(word: str) -> bool:
    return word[0].isdigit() or word in _BELOW or word in _SCALES
