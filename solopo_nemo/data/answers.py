"""Extraction of the answer that a response states, and its comparison with gold answers."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from solopo_nemo.data.normal_form import RULE, WORDS, holds, normalize, searchable

ANSWER_PREFIX = "The answer is:"
"""Prefix of the final answer of a response, in prompts, training data and evaluation."""
FIRST_RULE = "1"
"""Rule of files that name none."""
LITERAL = "literal"
"""Name of the published form of sub-EM; it takes the place of the rule's version."""

_TAG = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_BEGIN = (
    rf"[<◁]{_TAG}(?:\s[^<>]{{0,80}})?[>▷]|\[THINK\]|<\|(?:start_thinking|begin_of_thought)\|>"
    r"|<\|channel\|>(?:analysis|commentary)\b[^<]{0,80}<\|message\|>|<(?:\|channel|unused94)>thought\b"
)
_END = (
    rf"[<◁]/{_TAG}\s?[>▷]|\[/THINK\]|<\|(?:end_thinking|end_of_thought)\|>"
    r"|<\|channel\|>final\b[^<]{0,80}<\|message\|>|<channel\|>|<unused95>"
)
# long answers are read too: no pattern may take time by the square of a text, as ".*" without "\A" would
_THOUGHT = re.compile(rf"(?P<begin>{_BEGIN})|{_END}", re.I)

_NAMED = r"(?<!wrong\ )\b(?:(?:final|correct|right|short)\s+)?answer(?:\s+to\s+(?:the|this|that|your)\s+question)?"
_BOXED = r"\\f?boxed\s*\{"
_CLOSING = re.compile(
    rf"""{_NAMED}[*_"']{{0,9}}(?:\s+(?:is|was))?(?:\s+(?:therefore|thus|simply|clearly))?[*_"']*\s*[:：][*_]*
    | \bfinal\s+answer[*_]*(?:\s+is\b|\s*\n)
    | ^[#* \t]*answer[*\s]*$
    | (?P<tag><answer>)
    | (?:答案(?:是|为|為)?|答え(?:は)?|回答|정답(?:은)?)\s*[:：]
    | \b(?:antwort(?:\s+(?:ist|lautet))?|r[eé]ponse(?:\s+finale)?(?:\s+est)?|respuesta(?:\s+final)?(?:\s+es)?
      |risposta(?:\s+è)?|resposta(?:\s+é)?|ответ)[*_]*\s*[:：]
    | (?P<box>{_BOXED})""",
    re.I | re.M | re.X,
)
# read only in a response without one of the above
_SENTENCE = re.compile(
    rf"\b(?:the|my|so)\s+{_NAMED}[*_]*\s+(?:is|was)\b(?:\s+(?:therefore|thus|simply|clearly|that)\b)?"
    r"|答案(?:是|为|為)|答えは",
    re.I,
)
_VALUE = re.compile(
    r"""\s*(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\[[^\[\]]*\]
    |(?:-?\d[\d.]*|null|None|true|false)(?=\s*(?:[}\n]|,\s*["'])))""",
    re.S | re.X,
)
_LATEX: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(r"\\(?:text|math|operatorname)[a-z]*\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[td]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\[,;:! ()\[\]]|\{,\}(?=\d)"), lambda match: "," if match.group() == "{,}" else ""),
    (re.compile(r"\\([%$#&_])"), r"\1"),
]

_YES, _NO, _CLAUSE = (WORDS[name].split() for name in ("yes", "no", "clause"))
_POLAR = {normalize(word): word for word in _YES + _NO}
_SUBJECT = r"(?:passages?|texts?|documents?|contexts?|articles?|paragraphs?|sources?|information|question|i|we)"
_NOT = r"(?:not|n t|isn t|don t|doesn t|didn t|wasn t|aren t|can t|couldn t|cannot)"
_TOLD = (
    "mentioned|stated|specified|provided|given|available|known|found|answered|determined|clear|sure|indicated|"
    "disclosed|possible|answerable|applicable|explicitly|enough|sufficient|inferred|established|listed|described"
)
_FACTS = "answers?|information|mention|data|evidence|details?|record|indication|context|reference"
_REFUSAL = re.compile(
    rf"""^(?:(?:i\ (?:a\ )?m\ )?sorry\ |but\ |unfortunately\ |however\ )*(?:
      no\ (?:(?:such|clear|definitive|definite)\ )?(?:{_FACTS})\b
      |none\ of\ (?:passages|above|texts|documents)|{_NOT}\ (?:{_TOLD})\b|n\ a$
      |(?:unknown|undetermined|unclear|unspecified|unavailable|unanswerable|undisclosed)$
      |unable\ to|insufficient|impossible\ to|i\ (?:do\ not|don\ t)\ (?:know|have|find|see)
    )
    | \b(?:there\ (?:is|are|was)\ (?:no|not)|no|not\ enough|insufficient)\ (?:(?:relevant|specific|explicit|direct|
      sufficient|clear|further|such|enough)\ )*(?:answer|information|mention|evidence|data|details?|record|indication)\b
    | \b(?:is|are|was|were|be|been|isn\ t|aren\ t|wasn\ t)\ (?:(?:not|explicitly|clearly|directly)\ )*
      (?:unanswerable|unknown$|unclear$|unspecified)
    | \b(?:is|are|was|were)\ not\ (?:(?:explicitly|clearly|directly)\ )*(?:{_TOLD})\b
    | \b(?:isn|aren|wasn|weren)\ t\ (?:(?:explicitly|clearly|directly)\ )*(?:{_TOLD})\b
    | \b(?:cannot|can\ not|can\ t|could\ not|couldn\ t)\ (?:be\ (?:{_TOLD})|answer|determine|find|tell|infer)\b
    | \b{_SUBJECT}\ (?:above\ |provided\ |given\ )?(?:(?:do|does|did)\ not|(?:don|doesn|didn)\ t)\ (?:\w+ly\ )?
      (?:know|say|state|mention|specify|provide|contain|answer|tell|indicate|give|include|name|list|discuss|describe|have)\b""",
    re.X,
)
_REFUSAL_ABROAD = re.compile("|".join(map(normalize, WORDS["refusals"])))


def rule_name(literal: bool) -> str:
    """Return what is stored with pairs and scores: the version of the rule, or :data:`LITERAL`."""
    return LITERAL if literal else str(RULE)


@dataclass(frozen=True)
class Stated:
    """The answer that a response states.

    Attributes:
        text: The text of the last closing line, such as `The answer is: Oslo`; without one, the last line with text.
        prefixed: True if there is a closing line with text.
    """

    text: str
    prefixed: bool


def without_thoughts(response: str) -> str:
    """Return a response without its thoughts (`<think> ... </think>`), those without beginning or end included."""
    shown: list[str] = []
    begin, end = None, 0
    for mark in _THOUGHT.finditer(response):
        if mark["begin"]:
            begin = mark.start() if begin is None else begin
            continue
        if begin is None:
            shown.clear()
        else:
            shown.append(response[end:begin])
        begin, end = None, mark.end()
    return "".join([*shown, response[end:begin]])


def stated_answer(response: str) -> Stated:
    r"""Extract the answer of a response.

    Closing lines are `The answer is: X`, `**Final answer:** X`, `\boxed{X}` and the like; the last one counts. One
    without a colon counts where there is no other. Thoughts (`<think>`) are left out. A closing line without text and
    a thought without end state no answer.
    """
    shown = without_thoughts(response)
    found = [*_CLOSING.finditer(shown)] or [*_SENTENCE.finditer(shown)]
    if found:
        last, tail = found[-1], shown[found[-1].end() :]
        kind = last.groupdict()
        if kind.get("box"):
            lines = [_balanced(tail)]
        elif kind.get("tag"):
            lines = re.split("</answer>", tail, flags=re.I)[0].splitlines()
        elif re.search("[\"']", last.group()) and (value := _VALUE.match(tail)):
            lines = [_value(value.group())]
        else:
            lines = tail.splitlines()
        text = next((line for line in map(_clean, lines) if normalize(line)), "")
        return Stated(text, prefixed=bool(text))
    lines = [line.strip() for line in shown.splitlines() if any(map(str.isalnum, line))]
    return Stated((lines or [shown.strip()])[-1], prefixed=False)


def is_refusal(text: str) -> bool:
    """True if a stated answer says that there is none, such as "No answer." or "The passages do not say"."""
    form = normalize(text)
    return bool(_REFUSAL.search(form) or _REFUSAL_ABROAD.match(form))


def is_right(stated: Stated, answers: Iterable[str], *, literal: bool = False) -> bool:
    """Sub-EM: true if the stated answer contains a gold answer or an alias as whole words.

    For a gold answer "yes" or "no", the stated answer is that word, or begins with it and goes on with punctuation or
    a clause. A refusal is right only if it is the gold answer.

    Args:
        stated: The stated answer.
        answers: The gold answer and its aliases.
        literal: The published form instead: SQuAD's normal form of the answer is anywhere in that of the stated text,
            also inside a word.
    """
    if literal:
        text = _squad(stated.text)
        return any(answer and answer in text for answer in map(_squad, answers))
    refusal = is_refusal(stated.text)
    form = searchable(_without_refusals(stated.text) if refusal else stated.text)
    return any(_matches(stated.text, form, refusal, answer) for answer in answers)


def _matches(text: str, form: str, refusal: bool, answer: str) -> bool:
    normal = normalize(answer)
    if normal in _POLAR:
        return not refusal and _says(text, _POLAR[normal])
    if not any(map(str.isalnum, answer)):
        return bool(normal) and answer.strip() in text
    if refusal and (is_refusal(answer) or normal == normalize(text)):
        form = searchable(text)
    return holds(form, [searchable(answer)])


def _without_refusals(text: str) -> str:
    """Return a text without its refusing clauses: "Oslo (the passages do not say more)" states Oslo.

    A text whose first clause refuses is empty: "There is no information about Oslo, Norway".
    """
    clauses = re.split(r"[,;(.—]|\s[-–]\s", text)
    return "" if is_refusal(clauses[0]) else ", ".join(clause for clause in clauses if not is_refusal(clause))


def _says(text: str, word: str) -> bool:
    """True if a text is a yes or a no, or begins with it and goes on with punctuation or a clause."""
    begins = re.match(rf"[\W_]*{re.escape(word)}(?!\w)[*_\"')]*(.*)", _unmarked(text), re.S)
    if begins is None:
        return False
    rest = begins.group(1)
    words = normalize(rest).split()
    if not words or is_refusal(rest):
        return not words
    other = {normalize(one) for one in (_NO if word in _YES else _YES)}
    if re.match(r"\s*/", rest) or (words[0] in ("and", "or", "but") and other.intersection(words[1:2])):
        return False
    if re.match(r"\s*[,;:!?(，。、；：！—]|\s*\.(?!\s*\d)|\s*[-–]\s", rest):
        return True
    return word == "yes" or words[0] in _CLAUSE


def _unmarked(text: str) -> str:
    """Return a text in lower case without accents, its punctuation unchanged."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def _clean(text: str) -> str:
    """Return a stated text without Markdown's and LaTeX's marks."""
    for pattern, new in _LATEX if "\\" in text or "{,}" in text else ():
        text = pattern.sub(new, text)
    return text.strip(" \t*_`$")


def _value(text: str) -> str:
    """Return the text of a JSON value, or of one in Python's form; null is none."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:  # single quotes, None, or LaTeX that is not escaped
        return "" if text.strip() == "None" else text.strip(" \t\n[\"']")
    plain = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return plain.encode("utf-8", "replace").decode()  # JSON can hold half a character


def _balanced(text: str) -> str:
    """Return the text up to the brace that closes one before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:place]
    return ""


def _squad(text: str) -> str:
    """Return SQuAD's normal form: lower case, without punctuation and articles, and with single spaces."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))
