# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write each role's ``defaults/main.yml`` and ``README.md`` from its ``meta/argument_specs.yml``.

The format of the specs and the markup in their texts are Ansible's:
https://docs.ansible.com/ansible/latest/dev_guide/developing_collections_path.html#role-argument-validation and
https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
MARKUP = re.compile(r"\b(?:[BICVOEMP]|RV)\(((?:\\.|[^)\\])*)\)")
#: the condition of a role that is for the members of a group alone
MEMBERS = re.compile(r"inventory_hostname in groups\.(\w+)")
#: what YAML 1.1 takes for a number in base 60 or with leading zeros, or another version of YAML does
NUMBER_LIKE = re.compile(r"[-+]?\d[\d_:.]*")

Spec = Mapping[str, Any]


def roles() -> list[Path]:
    """Return the directories of the roles."""
    return sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def read_spec(role: Path) -> Spec:
    """Return the spec of the role's entry point ``main``."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    spec: Spec = specs["argument_specs"]["main"]
    return spec


def find_play(role: str) -> tuple[str, str]:
    """Return the playbook that has the role, by its name in the collection, and the hosts that have it there.

    They are those of its play, or the group whose members alone have the role. Raises LookupError where no playbook
    has it.
    """
    for playbook in sorted((ROOT / "playbooks").glob("*.yml")):
        for play in yaml.safe_load(playbook.read_text(encoding="utf-8")):
            for entry in play.get("roles", []):
                if entry["role"] == f"labrack.infra.{role}":
                    members = MEMBERS.search(str(entry.get("when", "")))
                    return f"labrack.infra.{playbook.stem}", members[1] if members else play["hosts"]
    raise LookupError(f"no playbook has the role labrack.infra.{role}: add it to a play's roles in playbooks/")


def generate(role: Path) -> dict[Path, str]:
    """Return path and text of the role's generated files."""
    spec = read_spec(role)
    return {
        role / "defaults" / "main.yml": defaults(role.name, spec["options"]),
        role / "README.md": readme(role.name, spec, *find_play(role.name)),
    }


def defaults(role: str, options: Spec) -> str:
    """Return ``defaults/main.yml``: each option that has a default, under the first sentence of its description."""
    parts = ["---\n# Written by `make docs` from meta/argument_specs.yml, which is the file to edit.\n"]
    for name, option in options.items():
        if "default" not in option:
            continue
        sentence = re.split(r"(?<=\.)\s", _markdown(" ".join(_paragraphs(option))), maxsplit=1)[0]
        comment = textwrap.fill(sentence, WIDTH, initial_indent="# ", subsequent_indent="# ")
        value = yaml.dump({name: option["default"]}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
        if not name.startswith(f"{role}_"):
            first, _newline, rest = value.partition("\n")
            value = f"{first} # noqa: var-naming[no-role-prefix]\n{rest}"
        parts.append(f"{comment}\n{value}")
    return "\n".join(parts)


class _Dumper(yaml.SafeDumper):
    """Indents lists, and puts text that could be read as something else in double quotes."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    tag = "tag:yaml.org,2002:str"
    read_as = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    unclear = NUMBER_LIKE.fullmatch(text) or read_as != tag
    return dumper.represent_scalar(tag, text, style='"' if unclear else None)


_Dumper.add_representer(str, _represent_text)


def readme(role: str, spec: Spec, playbook: str, hosts: str) -> str:
    """Return ``README.md``: what the role makes true, its variables, an example, and how to undo it."""
    rows = [f"| {' | '.join(row)} |\n" for row in _rows(spec["options"])]
    return f"""\
<!-- Written by `make docs` from meta/argument_specs.yml, which is the file to edit. -->

# labrack.infra.{role}

{spec["short_description"]}.

## What it does

{"".join(f"- {paragraph}{chr(10)}" for paragraph in map(_markdown, _paragraphs(spec)))}
## Variables

| name | type | default | description |
|---|---|---|---|
{"".join(rows)}
## Example

```yaml
- name: Check the inventory and read the nodes
  ansible.builtin.import_playbook: labrack.infra.preflight

- name: {spec["short_description"]}
  hosts: {hosts}
  gather_facts: false
  roles:
    - role: labrack.infra.{role}
```

## Undo

{_undo(role, spec["options"], playbook)}"""


def _rows(options: Spec, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and description; the options of a list's elements follow it as ``name[].option``."""
    for name, option in options.items():
        kind = option.get("type", "str")
        if "elements" in option:
            kind = f"{kind} of {option['elements']}"
        if "choices" in option:
            kind += ": " + ", ".join(f"`{choice}`" for choice in option["choices"])
        text = "<br>".join(map(_markdown, _paragraphs(option))).replace("|", r"\|")
        yield f"`{prefix}{name}`", kind, _default(option), text
        yield from _rows(option.get("options", {}), f"{prefix}{name}{'[]' if 'elements' in option else ''}.")


def _default(option: Spec) -> str:
    if "default" not in option:
        return "*required*" if option.get("required") else ""
    value = option["default"]
    if isinstance(value, (list, dict)) and value:
        return "[see there](defaults/main.yml)"
    return f"`{yaml.dump(value, Dumper=_Dumper, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"


def _undo(role: str, options: Spec, playbook: str) -> str:
    state = f"{role}_state"
    for name, option in options.items():
        if "absent" in option.get("options", {}).get("state", {}).get("choices", []):
            return f"`state: absent` in an entry of `{name}`; the role removes nothing else that it made.\n"
    if "absent" not in options.get(state, {}).get("choices", []):
        return "Nothing: the role never removes what it made.\n"
    command = f"ansible-playbook {playbook} -i INVENTORY --tags {role} -e {state}=absent"
    return f"```sh\n{command}\n```\n"


def _paragraphs(entry: Spec) -> list[str]:
    description = entry.get("description", [])
    return [description] if isinstance(description, str) else list(description)


def _markdown(text: str) -> str:
    return MARKUP.sub(r"`\1`", text)


def stale_files() -> dict[Path, str]:
    """Return path and wanted text of every generated file that is missing or differs."""
    wanted = {path: text for role in roles() for path, text in generate(role).items()}
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}


def main() -> int:
    """Write the files of all roles and name those that changed; with ``--check``, write none and return 1 instead."""
    check = "--check" in sys.argv[1:]
    stale = stale_files()
    for path, text in stale.items():
        print(path.relative_to(ROOT), "differs from its argument specs: run make docs" if check else "written")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
