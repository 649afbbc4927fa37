"""The date that a chat template writes (Llama 3.2's does): one day for all prompts of a run, kept with its model.

transformers gives templates the function ``strftime_now``. A pinned template brings its own, of a fixed day::

    pin_date(tokenizer, date(2026, 11, 29))    # strftime_now("%d %b %Y") is "29 Nov 2026" from now on
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "chat_template_date"
"""Of ``tokenizer_config.json``: the day of a model that was trained on prompts with a date."""
_DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuVeDFT"
_PINNED = re.compile(r"{# strftime_now of (\S+) #}")


def pin_date(tokenizer: PreTrainedTokenizerBase, day: date) -> bool:
    """Let the chat template write a fixed day, at midnight; returns whether it writes the date at all."""
    template = tokenizer.chat_template
    if not template or "strftime_now" not in str(template):
        return False
    moment = datetime.combine(day, time())
    replaced = [("%%", "\0"), *((f"%{f}{d}", moment.strftime(f"%{f}{d}")) for d in _DIRECTIVES for f in ("", "-"))]
    filters = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in [*replaced, ("\0", "%")])
    head = f"{{# strftime_now of {day} #}}{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}"
    # an empty expression keeps a line break at the beginning of the template, which a block would take
    pinned = {name: f"{head}{{{{ '' }}}}{text}" for name, text in _named(template).items()}
    tokenizer.chat_template = pinned if isinstance(template, dict) else pinned[""]
    return True


def pinned_date(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The day that :func:`pin_date` fixed, as ``2026-11-29``; None for a template that writes no date."""
    found = _PINNED.search(str(tokenizer.chat_template))
    return found[1] if found else None


def _named(template: str | dict[str, str]) -> dict[str, str]:
    return template if isinstance(template, dict) else {"": template}
