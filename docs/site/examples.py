"""What docstrings here have and griffe does not know: bare examples, and the arguments of a layer's call.

Markdown would read the three brackets of a prompt as nested quotations, and a section of no known name as one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)


CALL_ARGUMENTS = re.compile(r"^Call arguments:$", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences the examples of every object, and lists what its call takes."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
            obj.docstring.value = CALL_ARGUMENTS.sub("Other Parameters: Call arguments:", text)
