"""Shell completion: additions to click's, and a script for bash that shows descriptions.

On every Tab a shell's script runs shimctl with ``_SHIMCTL_COMPLETE`` and the words before
the cursor.  So the candidates are always those of the installed version.

Source: bash(1), "Programmable Completion"; click's shell_completion.
"""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
)

from shimctl.cli import COMPLETE_VARIABLE, FAILED

# Readline lists what it inserts.  Several candidates have their descriptions: it inserts the
# text in which all of them begin, which ends before the first description.  A single
# candidate has none, nor have several that readline inserts one after the other
# (menu-complete) or together (insert-completions), nor those that readline takes for equal
# with completion-ignore-case.
# Readline also splits words at "=", so a candidate for an option's value has no option.
_BASH = """\
# bash completion for %(prog_name)s; put it into bash-completion's directory, or run:
#   source <(%(prog_name)s completion bash)
%(complete_func)s() {
    local line kind value text found=() helps=() index longest=0 width plain=
    local -A seen=()
    COMPREPLY=()
    while IFS= read -r line; do
        IFS=$'\\t' read -r kind value text <<<"$line"
        case $kind in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain)
                found+=("$value") helps+=("$text")
                ((${#value} <= longest)) || longest=${#value}
                [[ -z ${seen[${value,,}]} ]] || plain=1
                seen[${value,,}]=1
                ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        %(complete_var)s=bash_complete "${COMP_WORDS[0]}" 2>/dev/null)
    case $COMP_TYPE in
        37 | 42) plain=1 ;;  # menu-complete, insert-completions
        63) plain= ;;        # a Tab that lists only
    esac
    width=$((${COLUMNS:-80} - longest - 4))
    for index in "${!found[@]}"; do
        value=${found[index]} text=${helps[index]}
        if [[ -z $plain && ${#found[@]} -gt 1 && -n $text && $width -gt 8 ]]; then
            ((${#text} <= width)) || text=${text:0:width-3}...
            printf -v value '%%-*s  (%%s)' "$longest" "$value" "$text"
        fi
        COMPREPLY+=("$value")
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Ours(ShellComplete):
    keeps_joined = True  # whether the shell takes --option=value for one word

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        if _is_foreign(self.cli, args):
            return []
        option, equals, _ = incomplete.partition("=")
        joined = option.startswith("--") and equals and self.keeps_joined
        found = super().get_completions(list(args), incomplete)
        for item in found:
            if joined and item.type == "plain":
                item.value = f"{option}={item.value}"
        # Skip words that cannot be typed as they are.
        return [one for one in found if one.type != "plain" or one.value.isprintable()]

    def source(self) -> str:
        # Not BashComplete's, which runs bash for its version.
        return ShellComplete.source(self)


class _Bash(_Ours, BashComplete):
    source_template = _BASH
    keeps_joined = False

    def format_completion(self, item: CompletionItem[str]) -> str:
        return f"{item.type}\t{item.value}\t{' '.join((item.help or '').split())}"


class _Zsh(_Ours, ZshComplete):
    pass


class _Fish(_Ours, FishComplete):
    # A description may have commas: click's script cuts it at the first.
    source_template = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


_CLASSES: dict[str, type[_Ours]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
SHELLS = tuple(_CLASSES)


def _is_foreign(cli: click.Command, args: list[str]) -> bool:
    """Return whether the next word is not ours: there is no such command, or it is exec's."""
    if not args or args[0].startswith("-") or not isinstance(cli, click.Group):
        return False
    with click.Context(cli, resilient_parsing=True) as top:
        command = cli.get_command(top, args[0])
        if command is None:
            return True
        if command.context_settings.get("allow_interspersed_args", True):
            return False
        context = command.make_context(args[0], args[1:], parent=top, resilient_parsing=True)
        return bool(context.params.get("id_") or context.params.get("bundle"))


def completer(shell: str) -> ShellComplete:
    """Return click's completion for ``shell``: bash, zsh or fish."""
    from shimctl.cli.app import app

    return _CLASSES[shell](app, {}, "shimctl", COMPLETE_VARIABLE)


def script(shell: str) -> str:
    """Return the completion script for ``shell``."""
    return completer(shell).source()


def complete(instruction: str) -> int:
    """Print the candidates for a shell's script; return the exit code."""
    shell, _, action = instruction.partition("_")
    if shell not in SHELLS or action != "complete":
        return FAILED
    print(completer(shell).complete())
    return 0
