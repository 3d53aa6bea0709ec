"""``hvext completion``: what a shell needs to complete hvext's command lines, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from hvext.cli.parser import whole_parser
from hvext.core.extras import library_missing
from hvext.core.options import Aio, Cache, DetectZeroes, DeviceModel, Discard, ErrorPolicy, option_names
from hvext.errors import ProgramError

#: Names without what stands around them in the table of ``hvext providers``; nothing where there are none.
_LIST = "hvext providers 2>/dev/null | sed 1d | cut -d' ' -f1"
_PROVIDERS: Mapping[str, object] = {
    "bash": "_hvext_providers",
    "zsh": "_hvext_providers",
    "fish": "(_hvext_providers)",
    "preamble": {
        "bash": f'_hvext_providers() {{\n  compgen -W "$({_LIST})" -- "$1"\n}}',
        "zsh": f'_hvext_providers() {{\n  local -a names=(${{(f)"$({_LIST})"}})\n  compadd -a names\n}}',
        "fish": f"function _hvext_providers\n  {_LIST}\nend",
    },
}
#: ``bench`` has two words behind it that make another command, where a provider may stand as well.
_BENCHED: Mapping[str, object] = {
    "bash": "_hvext_benched",
    "zsh": "_hvext_benched",
    "fish": "(_hvext_benched)",
    "preamble": {
        "bash": f'_hvext_benched() {{\n  compgen -W "compare report $({_LIST})" -- "$1"\n}}',
        # zsh has the whole line at hand: 'bench compare' is handed on as the one word that the parser has for it.
        "zsh": f"""\
_hvext_benched() {{
  local -a names=(compare report ${{(f)"$({_LIST})"}})
  compadd -a names
}}
functions[_hvext_one_word]=$functions[_shtab_hvext]
_shtab_hvext() {{
  if (( CURRENT > 3 )) && [[ $words[2] == bench && $words[3] == (compare|report) ]]; then
    words[2,3]=("bench-$words[3]")
    (( CURRENT -= 1 ))
  fi
  _hvext_one_word "$@"
}}""",
        "fish": f"function _hvext_benched\n  printf '%s\\n' compare report\n  {_LIST}\nend",
    },
}
#: Disk options with the values that are words.
_VALUES: Mapping[str, Sequence[str]] = {
    "device": tuple(DeviceModel),
    "cache": tuple(Cache),
    "aio": tuple(Aio),
    "discard": tuple(Discard),
    "detect_zeroes": tuple(DetectZeroes),
    "werror": tuple(ErrorPolicy),
    "rerror": tuple(policy for policy in ErrorPolicy if policy is not ErrorPolicy.ENOSPC),
    "read_only": ("on", "off"),
    "iothread": ("auto",),
}
#: Each name with its equals sign; and each of these values behind its own.
NAMES = tuple(f"{name}=" for name in option_names())
NAMED_VALUES = tuple(f"{name}={value}" for name, values in _VALUES.items() for value in values)
_OPTIONS: Mapping[str, object] = {
    "bash": "_hvext_disk_options",
    "zsh": "_hvext_disk_options",
    "fish": "(_hvext_disk_options)",
    "preamble": {
        "bash": f"""\
_hvext_disk_options() {{
  case $1 in
    *=*) compgen -W "{" ".join(NAMED_VALUES)}" -- "$1" ;;
    *) compgen -W "{" ".join(NAMES)}" -- "$1" ;;
  esac
}}""",
        "zsh": f"""\
_hvext_disk_options() {{
  local -a names=({" ".join(f"'{name}'" for name in NAMES)}) values=({" ".join(f"'{each}'" for each in NAMED_VALUES)})
  if [[ $PREFIX == *=* ]]; then
    values=(${{(M)values:#${{PREFIX%%=*}}=*}})
    compset -P 1 '*='
    compadd -- ${{values#*=}}
  else
    compadd -S '' -a names
  fi
}}""",
        "fish": f"""\
function _hvext_disk_options
  if string match -q -- '*=*' (commandline -ct)
    printf '%s\\n' {" ".join(NAMED_VALUES)}
  else
    printf '%s\\n' {" ".join(NAMES)}
  end
end""",
    },
}
#: What stands behind a script of shtab's.
_BEHIND: Mapping[str, str] = {
    # bash cuts words at "=", and puts what is completed behind the last of these.
    "bash": r"""
_hvext() {
  local cut=${COMP_WORDS[COMP_CWORD]} i
  local -a line=()
  for ((i = 0; i <= COMP_CWORD; i++)); do
    if ((i > 1)) && [[ ${COMP_WORDS[i]} == = && ${line[-1]} == --* ]]; then
      line+=('')
    elif ((i > 1)) && [[ ${COMP_WORDS[i]} == = || ${COMP_WORDS[i - 1]} == = ]]; then
      line[-1]+=${COMP_WORDS[i]}
    else
      line+=("${COMP_WORDS[i]}")
    fi
  done
  if ((${#line[@]} > 3)) && [[ ${line[1]} == bench && ${line[2]} == @(compare|report) ]]; then
    line=("${line[0]}" "bench-${line[2]}" "${line[@]:3}")
  fi
  local COMP_CWORD=$((${#line[@]} - 1))
  local -a COMP_WORDS=("${line[@]}")
  _shtab_hvext "$@"
  local word=${line[-1]}
  if [[ $word != "$cut" && $word == *=* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
  elif ((${#COMPREPLY[@]})) && [[ ${COMPREPLY[-1]} == *= ]]; then
    compopt -o nospace 2>/dev/null
  fi
  return 0
}
complete -o bashdefault -F _hvext hvext
""",
    "zsh": "",
    "fish": """
# 'bench compare' is one command for the parser.
function _shtab_hvext_using
  _shtab_hvext_scan
  test (string replace -r '^bench ' bench- -- "$_shtab_hvext_cmdpath") = "$argv"
end
set -ga _shtab_hvext_commands 'bench compare' 'bench report'
""",
}
#: How arguments are called that take the name of a file, and of a folder.
_FILES = frozenset({"FILE", "SOCKET", "PATTERN", "BINARY", "CMD", "BEFORE.json", "AFTER.json", "RESULT.json"})
_FOLDERS = frozenset({"DIR", "DIR:DIR…"})


def completion(arguments: argparse.Namespace) -> int:
    """Print the script that has a shell complete hvext's commands, options and arguments."""
    print(completion_script(arguments.shell))
    return 0


def completion_script(shell: str) -> str:
    """Return the script for ``bash``, ``zsh`` or ``fish``; raises ProgramError without shtab, which makes it."""
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise library_missing("shtab", "hvext completion needs", "completion") from error
    parser = whole_parser()
    for command, action in _arguments(parser):
        # argparse has no attribute for this: shtab looks for one of that name.
        if action.dest == "provider":
            vars(action)["complete"] = _BENCHED if command == "bench" else _PROVIDERS
        elif action.dest == "option":
            vars(action)["complete"] = _OPTIONS
        elif action.metavar in _FILES:
            vars(action)["complete"] = shtab.FILE
        elif action.metavar in _FOLDERS:
            vars(action)["complete"] = shtab.DIRECTORY
    try:
        return shtab.complete(parser, shell) + _BEHIND.get(shell, "")
    except NotImplementedError as error:
        raise ProgramError(
            f"shtab {shtab.__version__} makes no completion for {shell}",
            hint="shtab 1.10 does; a package of hvext has it in share/fish/vendor_completions.d",
        ) from error


def _arguments(parser: argparse.ArgumentParser, command: str = "") -> Iterator[tuple[str, argparse.Action]]:
    """Yield every argument, with the name of its command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                yield from _arguments(each, name)
        else:
            yield command, action
