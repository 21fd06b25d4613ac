# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hold variables to the options of a role's ``meta/argument_specs.yml``, and say of each wrong one where it is.

Ansible's own validator does the checking, one value at a time: asked for a whole role at once, it names neither the
place in a list nor the value. On the controller only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, Finding, shown
from ansible_collections.labrack.infra.plugins.module_utils.lab_check import is_secret

Path = tuple[str | int, ...]
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "dict": "a mapping", "list": "a list"}


def check_variables(
    options: Mapping[str, Mapping[str, Any]], variables: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Finding]]:
    """Return the variables of these options, converted and with defaults, without the wrong ones; and the findings."""
    clean: dict[str, Any] = {}
    findings: list[Finding] = []
    for name, option in options.items():
        if variables.get(name) is None:
            if "default" in option:
                clean[name] = option["default"]
            elif option.get("required"):
                findings.append(_missing((name,)))
            continue
        value, wrong = _check((name,), option, variables[name])
        findings += wrong
        if not wrong:
            clean[name] = value
    return clean, findings


def _check(path: Path, option: Mapping[str, Any], value: Any) -> tuple[Any, list[Finding]]:
    kind = option.get("type", "str")
    if kind in ("str", "path") and not isinstance(value, str):
        problem = f"YAML reads this as {_kind_of(value)}, not as text"
        return None, [_finding(path, option, value, problem, "put it in quotes, as it should be read")]
    shallow = {key: option[key] for key in ("type", "choices") if key in option}
    validator = ArgumentSpecValidator({"value": shallow})
    result = validator.validate({"value": value})
    if result.errors.errors:
        return None, [_finding(path, option, value, *_said(option, kind))]
    value = result.validated_parameters["value"]
    if kind == "list" and "elements" in option:
        inner = {"type": option["elements"], **{key: option[key] for key in ("options", "no_log") if key in option}}
        checked = [_check((*path, place), inner, element) for place, element in enumerate(value)]
        return [element for element, _wrong in checked], [one for _element, wrong in checked for one in wrong]
    if kind == "dict" and "options" in option:
        return _check_dict(path, option["options"], value)
    return value, []


def _check_dict(
    path: Path, options: Mapping[str, Mapping[str, Any]], value: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Finding]]:
    clean: dict[str, Any] = {}
    findings: list[Finding] = []
    for key in value:
        if key not in options:
            close = difflib.get_close_matches(str(key), options, 1)
            mend = f"write {close[0]}" if close else f"use one of {', '.join(options)}"
            findings.append(Finding((*path, str(key)), "", "no such key", mend))
    for key, option in options.items():
        if value.get(key) is not None:
            clean[key], wrong = _check((*path, key), option, value[key])
            findings += wrong
        elif "default" in option:
            clean[key] = option["default"]
        elif option.get("required"):
            findings.append(_missing((*path, key)))
    return clean, findings


def _said(option: Mapping[str, Any], kind: str) -> tuple[str, str]:
    choices: Sequence[Any] = option.get("choices", ())
    if choices:
        return "not one of the choices", f"use one of {', '.join(str(choice) for choice in choices)}"
    wanted = KINDS.get(kind, f"of type {kind}")
    return f"not {wanted}", f"write {wanted}"


def _kind_of(value: object) -> str:
    kind = type(value)
    return next((text for name, text in KINDS.items() if name in kind.__name__.lower()), f"a {kind.__name__}")


def _missing(path: Path) -> Finding:
    return Finding(path, "", "missing", "add it")


def _finding(path: Path, option: Mapping[str, Any], value: object, problem: str, mend: str) -> Finding:
    name = next(part for part in reversed(path) if isinstance(part, str))
    return Finding(path, HIDDEN if option.get("no_log") or is_secret(name) else shown(value), problem, mend)
