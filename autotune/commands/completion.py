"""Completion in bash of words with a colon or an equals sign, such as `v5e:4x4` and `remat=full`.

bash cuts the line at these signs before it asks, so that click's own script never sees the whole word. This one sends
the line itself and answers with what follows the last cut. In zsh and fish click's scripts do.
"""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_SOURCE = """\
%(complete_func)s() {
    local IFS=$'\\n'
    local response

    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD COMP_LINE="${COMP_LINE:0:$COMP_POINT}" \
COMP_CURRENT="${COMP_WORDS[COMP_CWORD]}" %(complete_var)s=bash_complete $1)

    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"

        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=($value)
            if [[ $value == *'=' ]]; then compopt -o nospace; fi
        fi
    done

    return 0
}

%(complete_func)s_setup() {
    complete -o nosort -F %(complete_func)s %(prog_name)s
}

%(complete_func)s_setup;
"""


class WholeWords(BashComplete):
    """click's completion for bash; where the line is given, a word is what stands between spaces."""

    source_template = _SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        """(words before the last, the word that is being written)."""
        line = os.environ.get("COMP_LINE")
        if line is None:
            return super().get_completion_args()
        words = split_arg_string(line)
        if not words or line[-1:].isspace():
            words.append("")
        return words[1:-1], words[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """The type and the value, less what stands on the line before bash's own word."""
        return f"{item.type},{str(item.value).removeprefix(self._before())}"

    def _before(self) -> str:
        """The part of the value that bash has cut off: up to its own current word, without the name of an option."""
        if "COMP_LINE" not in os.environ:
            return ""
        _, word = self.get_completion_args()
        current = os.environ.get("COMP_CURRENT", "").strip(":=")
        before = word[: len(word) - len(current)] if word.endswith(current) else ""
        return before.partition("=")[2] if word.startswith("--") else before


def register() -> Any:
    """Use it for bash from now on, in this process."""
    return add_completion_class(WholeWords, "bash")
