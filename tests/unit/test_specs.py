"""What documentation says is what the code takes: roles, modules and filters."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import generate_docs
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.plugin_docs import read_docstring

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "collections/ansible_collections/labrack/infra/plugins"
COLLECTION = "ansible_collections.labrack.infra.plugins"
ROLES = generate_docs.roles()
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))
ACTIONS = {path.stem for path in (PLUGINS / "action").glob("*.py")}
FILTERS = sorted(path.stem for path in (PLUGINS / "filter").glob("*.py"))

FRAGMENTS = sorted(path.stem for path in (PLUGINS / "doc_fragments").glob("*.py"))
# before a test starts Ansible's own loader of collections, which finds no package that was met in two places
for _kind, _names in (("modules", MODULES), ("filter", FILTERS), ("doc_fragments", FRAGMENTS)):
    for _name in _names:
        importlib.import_module(f"{COLLECTION}.{_kind}.{_name}")

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_defaults_and_readmes_are_those_of_the_specs() -> None:
    stale = [str(path.relative_to(ROOT)) for path in generate_docs.stale_files()]
    assert not stale, f"run `make docs`: {', '.join(stale)}"


def test_readme_names_the_hosts_that_have_the_role() -> None:
    assert generate_docs.find_play("headscale") == ("labrack.infra.closet", "headscale")
    assert generate_docs.find_play("baseline") == ("labrack.infra.closet", "lab_head:lab_workers")


@each_role
def test_defaults_read_back_as_specified(role: Path) -> None:
    options = generate_docs.read_spec(role)["options"]
    wanted = {name: option["default"] for name, option in options.items() if "default" in option}
    assert load(role / "defaults/main.yml") == wanted


@each_role
def test_spec_takes_its_own_defaults(role: Path) -> None:
    validator = ArgumentSpecValidator(generate_docs.read_spec(role)["options"])
    assert validator.validate(load(role / "defaults/main.yml")).error_messages == []


@each_role
def test_names_of_variables(role: Path) -> None:
    public = generate_docs.read_spec(role)["options"]
    assert [name for name in public if not name.startswith((f"{role.name}_", "lab_"))] == []
    private = load(role / "vars/main.yml") if (role / "vars/main.yml").exists() else {}
    assert [name for name in private if not name.startswith(f"_{role.name}_")] == []


@each_role
def test_role_has_meta(role: Path) -> None:
    assert load(role / "meta/main.yml")["galaxy_info"]["license"] == "GPL-3.0-or-later"


def tasks_of(entries: Any) -> Iterator[Mapping[str, Any]]:
    """All tasks of a file of tasks or of a playbook, those of blocks too."""
    for entry in entries or []:
        lists = ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always")
        inner = [entry[key] for key in lists if key in entry]
        for more in inner:
            yield from tasks_of(more)
        if not inner:
            yield entry


def test_no_task_asks_for_root_where_ansible_runs() -> None:
    """The keyword ``become`` gives way to an inventory's ``ansible_become``; only a task's variable does not."""
    here = [
        (path.name, task)
        for path in [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/*/tasks/*.yml")]
        for task in tasks_of(load(path))
        if task.get("delegate_to") == "localhost"
    ]
    assert len(here) > 8
    asking = [(name, task["name"]) for name, task in here if task.get("vars", {}).get("ansible_become") is not False]
    assert asking == []


@pytest.mark.parametrize(
    ("value", "text"),
    [("08:00:00", '"08:00:00"'), ("0755", '"0755"'), ("no", '"no"'), ("1_000", '"1_000"'), ("lab", "lab"), (7, "7")],
)
def test_defaults_quote_what_yaml_would_misread(value: object, text: str) -> None:
    written = generate_docs.defaults("demo", {"demo_value": {"description": "A value.", "default": value}})
    assert f"\n# A value.\ndemo_value: {text}\n" in written
    assert yaml.safe_load(written) == {"demo_value": value}


def documentation(module: str) -> dict[str, Any]:
    """The module's documentation with its fragments, beside it ``EXAMPLES`` and ``RETURN``."""
    read = read_docstring(str(PLUGINS / "modules" / f"{module}.py"), verbose=False, ignore_errors=False)
    document: dict[str, Any] = read["doc"]
    for name in document.get("extends_documentation_fragment", []):
        fragment = importlib.import_module(f"{COLLECTION}.doc_fragments.{name.rpartition('.')[2]}").ModuleDocFragment
        for section, entries in yaml.safe_load(fragment.DOCUMENTATION).items():
            document[section] = {**entries, **document.get(section, {})}
    return {**document, "EXAMPLES": yaml.safe_load(read["plainexamples"] or ""), "RETURN": read["returndocs"]}


class Called(Exception):
    """Carries the arguments with which a module made its AnsibleModule."""


def called_with(module: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    code = importlib.import_module(f"{COLLECTION}.modules.{module}")

    def stop(**arguments: Any) -> None:
        raise Called(arguments)

    monkeypatch.setattr(code, "AnsibleModule", stop)
    with pytest.raises(Called) as caught:
        code.main()
    arguments: dict[str, Any] = caught.value.args[0]
    return arguments


def flat(options: Mapping[str, Any], suboptions: str, prefix: str = "") -> dict[str, Any]:
    """Options by dotted name, all defaults filled in; ``suboptions`` is the key under which the nested ones stand."""
    found: dict[str, Any] = {}
    for name, option in options.items():
        found[prefix + name] = {
            "type": option.get("type", "str"),
            "elements": option.get("elements"),
            "required": option.get("required", False),
            "choices": list(option.get("choices") or []),
            "default": option.get("default"),
        }
        found |= flat(option.get(suboptions) or {}, suboptions, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if module not in ACTIONS])
def test_module_takes_what_it_documents(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = documentation(module)
    taken = called_with(module, monkeypatch)
    assert flat(documented.get("options", {}), "suboptions") == flat(taken["argument_spec"], "options")
    support = documented["attributes"]["check_mode"]["support"]
    assert (support == "full") == taken.get("supports_check_mode", False)


@pytest.mark.parametrize("module", MODULES)
def test_module_has_its_documentation(module: str) -> None:
    documented = documentation(module)
    assert documented["module"] == module
    assert documented["version_added"] == "0.1.0"
    assert all(entry["description"] for entry in documented["RETURN"].values())
    assert all("name" in task for task in documented["EXAMPLES"])
    assert any(f"labrack.infra.{module}" in task for task in documented["EXAMPLES"])


@pytest.mark.parametrize("plugin", FILTERS)
def test_filter_has_its_documentation(plugin: str) -> None:
    code = importlib.import_module(f"{COLLECTION}.filter.{plugin}")
    for name in code.FilterModule().filters():
        docs = load(PLUGINS / "filter" / f"{name}.yml")
        assert docs["DOCUMENTATION"]["name"] == name
        assert yaml.safe_load(docs["EXAMPLES"])
        assert docs["RETURN"]["_value"]["description"]
