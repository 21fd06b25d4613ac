# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan what keeps the host's Python clean and gives everybody a better one: marker, uv with caches, word to admins.

Pure. The marker (PEP 668) belongs to a package of the distribution on Debian 12 and Ubuntu 24.04 and later: it is
diverted (dpkg-divert(1)), so that upgrades of that package leave ours. pip before 23.0 does not know the marker; there
a setting of root's keeps ``sudo pip install`` out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.uv_wheel import PROGRAMS

LOGIN = "/etc/profile.d/labrack.sh"
NOTICE = "/var/lib/labrack/golden-rule"
#: Only root's: for everybody it would stop pip in the conda of a user's own home, which is no virtual environment.
PIP_CONF = "/root/.config/pip/pip.conf"
#: The first pip that heeds the marker (https://pip.pypa.io/en/stable/news/, 23.0).
HEEDS_MARKER = 23
#: What the package's own marker is called while ours is there.
KEPT = ".labrack-kept"
HEADER = "# kept by labrack: change the inventory's baseline_* variables instead\n"
_PIP_COMMENT = "# labrack: the system's Python is for the system's packages\n"
_PIP_LINE = "require-virtualenv = true\n"
_OWN_SECTION = re.escape(f"{_PIP_COMMENT}[global]\n{_PIP_LINE}")
_SECTION = re.compile(r"^\[global\][ \t]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Observed:
    """A node as it is.

    ``marker`` is where the marker of the system's Python belongs, None without Python; ``diverted`` are the markers in
    whose place ours is. ``pip`` is the version of the packaged pip. ``programs`` are uv's, with the versions they say.
    ``admins`` are users, and groups with ``%``, who may do everything by sudo. ``copies``: homes lie on another file
    system than the cache. ``notice_text`` is what there is to tell admins.
    """

    marker: str | None = None
    marker_file: FileState | None = None
    diverted: tuple[str, ...] = ()
    pip: str | None = None
    pip_conf: FileState | None = None
    programs: Mapping[str, str] = field(default_factory=dict)
    login: FileState | None = None
    notice: FileState | None = None
    admins: tuple[str, ...] = ()
    copies: bool = False
    notice_text: str = ""


@dataclass(frozen=True)
class Wanted:
    """A node as it should be. ``present`` False: nothing of ours, so the other fields don't count.

    ``uv`` is the version, ``cache`` the folder above the users' caches; "" for none.
    """

    present: bool = True
    guard: bool = True
    uv: str = ""
    cache: str = ""


def plan(observed: Observed, wanted: Wanted, recorded: Collection[str]) -> list[Change]:
    """Return what is off, in the order in which it can be applied; ``recorded`` are files that we have put there.

    Steps beside those of files: ``("divert"|"undivert", path)``, ``("uv", version)``.
    """
    files = wanted_files(observed, wanted)
    changes = []
    target = marker_target(observed, wanted)
    for path in observed.diverted:
        if path != target:
            changes.append(Change(f"file {path}", "the package's own is back", step=("undivert", path)))
    marker_file = observed.marker_file
    if target and target not in observed.diverted:
        text = "" if marker_file is None else marker_file.text
        changes.append(Change(f"file {target}", "ours in its place", before=text, step=("divert", target)))
        marker_file = None
    if target:
        changes += plan_file(target, marker_file, files[target])
    conf = files[PIP_CONF]
    ours_in_it = [_PIP_COMMENT.strip(), _PIP_LINE.strip()] if conf and _PIP_COMMENT in conf.text else []
    changes += plan_file(PIP_CONF, observed.pip_conf, conf, part=ours_in_it)
    for path in PROGRAMS if wanted.present and wanted.uv else ():
        managed.note("file", path, how=managed.STAT)
    if uv_is_off(observed, wanted):
        there = observed.programs.get(PROGRAMS[0])
        before = "" if there is None else f"uv {there or 'that does not run'}"
        summary = f"{before} → {wanted.uv}" if before else f"installed {wanted.uv}"
        changes.append(Change("uv", summary, before=before, after=f"uv {wanted.uv}", step=("uv", wanted.uv)))
    if not (wanted.present and wanted.uv):
        for path in PROGRAMS:
            if path in recorded and path in observed.programs:
                before = f"version {observed.programs[path]}"
                changes.append(Change(f"file {path}", "removed", before=before, step=("remove", path)))
    changes += plan_file(LOGIN, observed.login, files[LOGIN])
    changes += plan_file(NOTICE, observed.notice, files[NOTICE])
    return changes


def ours(observed: Observed, wanted: Wanted, recorded: Collection[str]) -> tuple[str, ...]:
    """Return the files to remember as ours once the plan is applied, sorted; a uv that was right is not ours."""
    if not (wanted.present and wanted.uv):
        return ()
    if uv_is_off(observed, wanted):
        return PROGRAMS
    return tuple(sorted(path for path in PROGRAMS if path in recorded))


def uv_is_off(observed: Observed, wanted: Wanted) -> bool:
    """Return whether uv has to be installed, or replaced by the wanted version."""
    return bool(wanted.present and wanted.uv and any(observed.programs.get(path) != wanted.uv for path in PROGRAMS))


def marker_target(observed: Observed, wanted: Wanted) -> str | None:
    """Return where our marker shall be, None for nowhere."""
    return observed.marker if wanted.present and wanted.guard else None


def wanted_files(observed: Observed, wanted: Wanted) -> dict[str, FileState | None]:
    """Return the wanted state of each file that this planner writes."""
    conf = observed.pip_conf or FileState("")
    old_pip = observed.pip is not None and int(observed.pip.partition(".")[0]) < HEEDS_MARKER
    text = with_setting(conf.text) if wanted.present and wanted.guard and old_pip else without_setting(conf.text)
    pip_conf: FileState | None = replace(conf, text=text)
    if not text and (observed.pip_conf is None or observed.pip_conf.text):
        pip_conf = None
    files: dict[str, FileState | None] = {PIP_CONF: pip_conf, LOGIN: None, NOTICE: None}
    if observed.marker:
        files[observed.marker] = FileState(marker_text(bool(wanted.uv)))
    if wanted.present:
        files[LOGIN] = FileState(login_script(wanted.cache if wanted.uv else "", observed.copies, observed.admins))
        if observed.notice_text:
            files[NOTICE] = FileState(observed.notice_text)
    return files


def marker_text(uv: bool) -> str:
    """Return the marker file, whose Error pip and uv show to whoever installs outside a virtual environment."""
    if uv:
        how = ["uv venv", "uv pip install PACKAGE", "uv run python my_script.py"]
    else:
        how = ["python3 -m venv .venv", ".venv/bin/pip install PACKAGE", ".venv/bin/python my_script.py"]
    lines = [
        "Error=Nothing was installed. This Python belongs to the machine, and everybody",
        "on it runs it: a package that you add here can break the work of others.",
        "",
        "Give your project its own packages instead. In its folder:",
        "",
        *[f"$ {command}" for command in how],
        "",
        "If it needs more than Python packages (another CUDA, system libraries),",
        "use a container.",
    ]
    # configparser(3) takes indented lines, and empty ones between them, for the value's next lines
    return HEADER + "[externally-managed]\n" + "\n".join(lines).replace("\n", "\n ").replace("\n \n", "\n\n") + "\n"


def with_setting(text: str) -> str:
    """Return a pip.conf with the setting that asks for a virtual environment; one that is there stays as it is."""
    text = without_setting(text)
    if re.search(r"^\s*require[-_]virtualenv\s*[=:]", text, re.MULTILINE | re.IGNORECASE):
        return text
    section = _SECTION.search(text)
    if section:
        return text[: section.end()] + _PIP_COMMENT + _PIP_LINE + text[section.end() :]
    ended = text if not text or text.endswith("\n") else text + "\n"
    return f"{ended}{_PIP_COMMENT}[global]\n{_PIP_LINE}"


def without_setting(text: str) -> str:
    """Return a pip.conf without what :func:`with_setting` has put into it."""
    # a section that we began stays for what others have put into it
    text = re.sub(_OWN_SECTION + r"(?=\s*(\[|\Z))", "", text)
    return re.sub(_OWN_SECTION, "[global]\n", text).replace(_PIP_COMMENT + _PIP_LINE, "")


def login_script(cache: str, copies: bool, admins: Sequence[str]) -> str:
    """Return what every login shell reads: the user's cache for uv, and for admins what breaks the golden rule.

    It makes the user's own folder under ``cache`` and takes it only if it is the user's: in a folder that all write
    to, somebody else may have made it first. ``copies`` tells uv not to try hard links and warn.
    """
    lines = [HEADER.rstrip("\n")]
    if cache:
        lines += [
            f'_labrack_cache="{cache}/${{LOGNAME:-}}"',
            f'if [ "${{LOGNAME:-root}}" != root ] && [ -z "${{UV_CACHE_DIR:-}}" ] && [ -d {cache} ]; then',
            '    [ -d "$_labrack_cache" ] || mkdir -m 700 "$_labrack_cache" 2>/dev/null',
            '    if [ -O "$_labrack_cache" ] && [ ! -L "$_labrack_cache" ]; then',
            '        export UV_CACHE_DIR="$_labrack_cache"',
            *(['        export UV_LINK_MODE="${UV_LINK_MODE:-copy}"'] if copies else []),
            "    fi",
            "fi",
            "unset _labrack_cache",
        ]
    users = " ".join(["root", *(name for name in admins if name[0] != "%" and name != "root")])
    groups = " ".join(name[1:] for name in admins if name[0] == "%")
    lines += [
        "case $- in",
        "*i*)",
        f"    if [ -s {NOTICE} ]; then",
        "        _labrack_admin=",
        f'        case " {users} " in *" $(id -un) "*) _labrack_admin=yes ;; esac',
        "        for _labrack_group in $(id -nG); do",
        f'            case " {groups} " in *" $_labrack_group "*) _labrack_admin=yes ;; esac',
        "        done",
        f'        [ -z "$_labrack_admin" ] || head -n 1 {NOTICE}',
        "        unset _labrack_admin _labrack_group",
        "    fi",
        "    ;;",
        "esac",
    ]
    return "\n".join(lines) + "\n"


def cache_folders(cache: str, there: Collection[str], coming: Collection[str]) -> list[str]:
    """Return the folders to make for the cache, outermost first; none where its file system's folder is missing.

    ``there`` are those of the path's folders that exist, ``coming`` those that the same run makes. The last one is
    always returned, as its mode matters.
    """
    parts = cache.strip("/").split("/")
    paths = ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    if len(paths) < 2 or not (paths[0] in there or paths[0] in coming):
        return []
    return [path for path in paths[1:-1] if path not in there and path not in coming] + [posixpath.normpath(cache)]


def read_admins(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the users, and groups with ``%``, to whom sudoers files give all commands as root, sorted.

    The form is that of sudoers(5); aliases are not followed.
    """
    rule = re.compile(r"^\s*(%?[A-Za-z_][\w.-]*)\s+\S+\s*=\s*(\([^)]*\)\s*)?([A-Z_]+:\s*)*ALL\s*$", re.MULTILINE)
    return tuple(sorted({found[1] for text in texts for found in rule.finditer(text)} - {"Defaults"}))
