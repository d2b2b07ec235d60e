"""Shell completion: candidates from the parser, and a script for each shell.

On every Tab a shell's script runs ``shimctl __complete`` with the words before the
cursor.  It gets a line for each candidate: the word, a tab and its help.  The lines
``:files`` and ``:directories`` request the shell's own completion of names.  So the
candidates are always those of the installed version.

All functions here are pure: they read no file and no environment variable.

Source: bash(1), "Programmable Completion"; zshcompsys(1); fish's complete(1).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    # Maps "id", "namespace" or "signal" to the existing values, each with its help.
    Lookup = Callable[[str, dict[str, list[str]]], Iterable[tuple[str, str]]]

# The kind of an argument, by its name in the usage line.
_KINDS = {
    "ID": "id",
    "SIGNAL": "signal",
    "DIR": ":directories",
    "FILE": ":files",
    "BUNDLE": ":files",
    "IMAGE": ":files",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that may be inserted at the cursor, or ``:files`` or ``:directories``."""

    word: str
    help: str = ""

    def __str__(self) -> str:
        return f"{self.word}\t{self.help}" if self.help else self.word


@dataclass(slots=True)
class _Line:
    """The words of one command before the cursor."""

    parser: argparse.ArgumentParser
    given: dict[str, list[str]] = field(default_factory=dict)
    waiting: argparse.Action | None = None  # an option whose value comes next
    positionals: int = 0
    only_positionals: bool = False

    def take(self, word: str) -> None:
        """Process one complete word."""
        if self.waiting is not None:
            self._note(self.waiting, word)
            self.waiting = None
        elif self.only_positionals or not word.startswith("-") or word == "-":
            self.positionals += 1
            expected = self.positional(self.positionals - 1)
            self.only_positionals |= expected is None or expected.nargs == argparse.REMAINDER
        elif word == "--":
            self.only_positionals = True
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            self._take_option(self.option(name), value if equals else None)
        else:
            self._take_letters(word[1:])

    def _take_letters(self, letters: str) -> None:
        for at, letter in enumerate(letters):
            action = self.option(f"-{letter}")
            if action is not None and action.nargs != 0:
                self._take_option(action, letters[at + 1 :] or None)
                return
            self._take_option(action, None)

    def _take_option(self, action: argparse.Action | None, value: str | None) -> None:
        if action is None:
            return
        if action.nargs == 0:
            self._note(action, "")
        elif value is None:
            self.waiting = action
        else:
            self._note(action, value)

    def _note(self, action: argparse.Action, value: str) -> None:
        self.given.setdefault(action.dest, []).append(value)

    def option(self, name: str) -> argparse.Action | None:
        """Return the option with this name, or with a name that only it begins with."""
        named = {text: action for action in self.options() for text in action.option_strings}
        if name in named:
            return named[name]
        close = {id(action): action for text, action in named.items() if text.startswith(name)}
        return next(iter(close.values())) if len(close) == 1 and len(name) > 2 else None

    def options(self) -> list[argparse.Action]:
        """Return every option of the command."""
        return [action for action in self.parser._actions if action.option_strings]

    def positional(self, at: int) -> argparse.Action | None:
        """Return the action of the ``at``-th positional argument; the last may take several."""
        actions = [action for action in self.parser._actions if not action.option_strings]
        if at < len(actions):
            return actions[at]
        many = bool(actions) and actions[-1].nargs in ("*", "+", argparse.REMAINDER)
        return actions[-1] if many else None


def complete(
    parser: argparse.ArgumentParser, words: Sequence[str], lookup: Lookup
) -> list[Candidate]:
    """Return the candidates for the last of ``words``, which exclude the program's name.

    ``lookup`` returns the existing ids, namespaces or signals.  It is called only if one
    of these is expected, with the options before the cursor.
    """
    *before, current = words or [""]
    line = _Line(parser)
    while before:
        word = before.pop(0)
        at = line.positionals
        line.take(word)
        action = line.positional(at)
        if isinstance(action, argparse._SubParsersAction) and line.positionals > at:
            if word not in action.choices:
                return []
            line = _Line(action.choices[word])
    found = _candidates(line, current, lookup)
    return [one for one in found if one.word.startswith((current, ":"))]


def _candidates(line: _Line, current: str, lookup: Lookup) -> list[Candidate]:
    if line.waiting is not None:
        return _values(line, line.waiting, lookup)
    if current.startswith("--") and "=" in current and not line.only_positionals:
        name = current.partition("=")[0]
        option = line.option(name)
        if option is None or option.nargs == 0:
            return []
        values = _values(line, option, lookup)
        return [
            one if one.word.startswith(":") else Candidate(f"{name}={one.word}", one.help)
            for one in values
        ]
    if current.startswith("-") and not line.only_positionals:
        return [
            Candidate(name, option.help or "")
            for option in line.options()
            if option.dest not in line.given or isinstance(option, argparse._AppendAction)
            for name in option.option_strings
            if name.startswith("--") or current == "-"
        ]
    expected = line.positional(line.positionals)
    return [] if expected is None else _values(line, expected, lookup)


def _values(line: _Line, action: argparse.Action, lookup: Lookup) -> list[Candidate]:
    if isinstance(action, argparse._SubParsersAction):
        helps = {one.dest: one.help or "" for one in action._choices_actions}
        return [Candidate(name, helps.get(name, "")) for name in action.choices]
    if action.choices is not None:
        return [Candidate(str(choice)) for choice in action.choices]
    kind = "namespace" if action.dest == "namespace" else _KINDS.get(str(action.metavar), "")
    if not kind or kind.startswith(":"):
        return [Candidate(kind)] if kind else []
    return [Candidate(*found) for found in lookup(kind, line.given)]


def script(shell: str) -> str:
    """Return the completion script for ``shell``: bash, zsh or fish."""
    return _SCRIPTS[shell].lstrip("\n")


_BASH = r"""
# bash completion for shimctl; put it into bash-completion's directory, or run:
#   source <(shimctl completion bash)
_shimctl() {
    local words=() word index cut="" line
    # Readline also splits words at "="; shimctl expects --output=js as one word.
    for ((index = 1; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ $word == "=" && ${#words[@]} -gt 0 && ${words[-1]} == --* ]]; then
            words[-1]+="="
            cut=${words[-1]}
            ((index == COMP_CWORD)) || words[-1]+=${COMP_WORDS[++index]}
            ((index < COMP_CWORD)) && cut=""
        else
            words+=("$word")
            cut=""
        fi
    done
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            :files) compopt -o default 2>/dev/null ;;
            :directories) compopt -o dirnames 2>/dev/null ;;
            *)
                word=${line%%$'\t'*}
                COMPREPLY+=("${word#"$cut"}")
                ;;
        esac
    done < <("${COMP_WORDS[0]}" __complete -- "${words[@]}" 2>/dev/null)
}
complete -F _shimctl shimctl
"""

_ZSH = r"""
#compdef shimctl
# zsh completion for shimctl; put it into a directory of $fpath as _shimctl, or run:
#   source <(shimctl completion zsh)
_shimctl() {
    local line files="" directories=""
    local -a found
    while IFS= read -r line; do
        case $line in
            :files) files=yes ;;
            :directories) directories=yes ;;
            *$'\t'*) found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
            *) found+=("${line//:/\\:}") ;;
        esac
    done < <("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( ${#found} )) && _describe -V shimctl found
    if [[ -n $files ]]; then
        _files
    elif [[ -n $directories ]]; then
        _files -/
    fi
}
if [[ ${funcstack[1]} == _shimctl ]]; then
    _shimctl "$@"
else
    compdef _shimctl shimctl
fi
"""

_FISH = r"""
# fish completion for shimctl; put it into ~/.config/fish/completions, or run:
#   shimctl completion fish | source
function __shimctl_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in ($words[1] __complete -- $words[2..] $current 2>/dev/null)
        switch $line
            case ':files'
                __fish_complete_path $current
            case ':directories'
                __fish_complete_directories $current
            case '*'
                echo $line
        end
    end
end
complete -c shimctl -f -a '(__shimctl_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
SHELLS = tuple(_SCRIPTS)
