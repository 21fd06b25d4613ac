# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One package source of our own: its file, its key, its pins; and apt, asked so that it can't do harm.

A source is planned as every file is, by :func:`plan_source`, and made so by :func:`apply_source`. Packages come in by
:func:`install`: the plan of apt is looked at first, everything is downloaded before anything is unpacked, and what
apt says is told as cause and mend. Formats: sources.list(5), apt_preferences(5), apt-secure(8).
Standard library only, no Ansible import.
"""

from __future__ import annotations

import contextlib
import glob
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Callable

from ansible_collections.labrack.infra.plugins.module_utils import managed, openpgp
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    Done,
    FileState,
    observe_file,
    plan_file,
    read_text,
    remove_file,
    run,
    write_file,
)

SOURCES = "/etc/apt/sources.list.d"
KEYRINGS = "/etc/apt/keyrings"
PREFERENCES = "/etc/apt/preferences.d"
REPOS = "/etc/yum.repos.d"
RPM_KEYS = "/etc/pki/rpm-gpg"

#: Bytes; a key has a few thousand, and whatever is bigger is something else.
KEY_LIMIT = 1 << 20
KEY_TIMEOUT = 30.0
#: Seconds that apt may take for an index or a download, and that it waits for somebody else's apt.
APT_TIMEOUT = 1800.0
LOCK_TIMEOUT = 120

Runner = Callable[..., Done]
Fetch = Callable[[str], bytes]


class SourceError(RuntimeError):
    """A source or a package that can't be had; the message says the cause and the mend."""


@dataclass(frozen=True)
class Pin:
    """A record of apt_preferences(5): ``pin`` is what follows ``Pin:``, such as ``version 1.20.0-1``."""

    packages: tuple[str, ...]
    pin: str
    priority: int


@dataclass(frozen=True)
class Source:
    """A source. ``name`` names its files; ``suite`` "/" is a flat repository, which has no components.

    ``fingerprints`` are those of the keys that may sign it: a key file with any other key in it is refused.
    ``family`` "redhat" makes it a source of dnf; ``signed_packages`` then says that the packages are signed and not
    the index.
    """

    name: str
    uri: str
    key_url: str
    fingerprints: tuple[str, ...]
    suite: str = "/"
    components: tuple[str, ...] = ()
    architecture: str = ""
    pins: tuple[Pin, ...] = ()
    family: str = "debian"
    signed_packages: bool = False

    @property
    def path(self) -> str:
        """Return where the source's own file is."""
        return f"{REPOS}/{self.name}.repo" if self.family == "redhat" else f"{SOURCES}/{self.name}.sources"

    @property
    def keyring(self) -> str:
        """Return where its key is."""
        return f"{RPM_KEYS if self.family == 'redhat' else KEYRINGS}/{self.name}.asc"

    @property
    def preferences(self) -> str:
        """Return where its pins are."""
        return f"{PREFERENCES}/{self.name}.pref"


@dataclass(frozen=True)
class SourceState:
    """A source as it is; ``others`` are all other files in which apt finds sources, by path."""

    source: FileState | None = None
    key: FileState | None = None
    pins: FileState | None = None
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One source that some file names; ``signed_by`` as apt compares it, empty where there is none."""

    path: str
    uri: str
    suite: str
    signed_by: str


@dataclass(frozen=True)
class Simulation:
    """What apt would do: versions by package that would come in, and the names of those that would go."""

    installs: Mapping[str, str] = field(default_factory=dict)
    replaces: Mapping[str, str] = field(default_factory=dict)
    removes: tuple[str, ...] = ()


# --- files -----------------------------------------------------------------------------------------------------------


def render_source(source: Source) -> str:
    """Return the text of the source's file: deb822 for apt, INI for dnf."""
    if source.family == "redhat":
        return (
            f"# Written by labrack.\n[{source.name}]\nname={source.name}\nbaseurl={source.uri}\nenabled=1\n"
            f"gpgcheck={int(source.signed_packages)}\nrepo_gpgcheck={int(not source.signed_packages)}\n"
            f"gpgkey=file://{source.keyring}\n"
        )
    lines = ["# Written by labrack.", "Types: deb", f"URIs: {source.uri}", f"Suites: {source.suite}"]
    if source.components:
        lines.append(f"Components: {' '.join(source.components)}")
    if source.architecture:
        lines.append(f"Architectures: {source.architecture}")
    return "\n".join([*lines, f"Signed-By: {source.keyring}"]) + "\n"


def render_pins(source: Source) -> str:
    """Return the text of the source's preferences file. Of two records that match a version the first one counts."""
    records = [
        f"Package: {' '.join(pin.packages)}\nPin: {pin.pin}\nPin-Priority: {pin.priority}\n" for pin in source.pins
    ]
    return "\n".join(["# Written by labrack.\n" + records[0], *records[1:]]) if records else ""


def has_key(state: SourceState, source: Source) -> bool:
    """Return whether the key file holds keys of the source's fingerprints and no other."""
    if state.key is None or replace(state.key, text="") != FileState(""):
        return False
    try:
        found = openpgp.fingerprints(state.key.text.encode())
    except openpgp.OpenpgpError:
        return False
    return set(found) <= {openpgp.normal(one) for one in source.fingerprints}


def plan_source(state: SourceState, source: Source, present: bool = True) -> list[Change]:
    """Plan key, source and pins, in the order in which they can be applied; SourceError for a source twice named.

    Steps are ``("key", path)``, ``("write", path)`` and ``("remove", path)``, for :func:`apply_source`.
    """
    if not present:
        files = ((source.path, state.source), (source.preferences, state.pins), (source.keyring, state.key))
        return [change for path, found in files for change in plan_file(path, found, None)]
    check_conflicts(source, state.others)
    managed.note("file", source.keyring)
    changes = []
    if not has_key(state, source):
        keys = ", ".join(openpgp.normal(one) for one in source.fingerprints)
        summary = f"fetched from {source.key_url}, fingerprint {keys}"
        changes.append(Change(f"file {source.keyring}", summary, step=("key", source.keyring)))
    changes += plan_file(source.path, state.source, FileState(render_source(source)))
    return changes + plan_file(source.preferences, state.pins, FileState(render_pins(source)) if source.pins else None)


def read_entries(path: str, text: str, architecture: str = "") -> Iterator[Entry]:
    """Yield the enabled binary sources of a file; ``$(ARCH)`` is the given architecture, as apt has it."""
    for uri, suite, signed_by in _deb822(text) if path.endswith(".sources") else _one_line(text):
        yield Entry(path, normal_uri(uri, architecture), suite, signed_by)


def normal_uri(uri: str, architecture: str = "") -> str:
    """Return a source's address as apt compares it."""
    return uri.replace("$(ARCH)", architecture).rstrip("/") + "/"


def check_conflicts(source: Source, others: Mapping[str, str]) -> None:
    """Raise SourceError when another file names the same source with another Signed-By, which stops all of apt."""
    wanted = normal_uri(source.uri, source.architecture)
    for path in sorted(others):
        for entry in read_entries(path, others[path], source.architecture):
            if (entry.uri, entry.suite) == (wanted, source.suite) and entry.signed_by != source.keyring:
                signed = f"Signed-By {entry.signed_by}" if entry.signed_by else "no Signed-By"
                raise SourceError(
                    f"{path} names the source {entry.uri} too, with {signed}, and apt stops altogether where one "
                    f"source has two keys. Mend: remove {path}, or that entry in it, and run again; this role brings "
                    "the source with its own key"
                )


def _one_line(text: str) -> Iterator[tuple[str, str, str]]:
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)", line)
        if found:
            options = dict(one.split("=", 1) for one in (found["options"] or "").split() if "=" in one)
            if options.get("enabled", "yes").lower() not in ("no", "false", "0"):
                yield found["uri"], found["suite"], options.get("signed-by", "")


def _deb822(text: str) -> Iterator[tuple[str, str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", lines):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line.strip()
            elif ":" in line:
                name, _colon, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0") or "deb" not in fields.get("types", "").split():
            continue
        signed_by = fields.get("signed-by", "")
        # a key that stands in the file itself is no path, and never ours
        signed_by = "a key of its own" if "BEGIN PGP" in signed_by else " ".join(signed_by.split())
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, signed_by


# --- the node --------------------------------------------------------------------------------------------------------


def observe_source(source: Source) -> SourceState:
    """Read the source's files, and all others in which apt finds sources."""
    if source.family == "redhat":
        return SourceState(observe_file(source.path), observe_file(source.keyring))
    paths = ["/etc/apt/sources.list", *glob.glob(f"{SOURCES}/*.list"), *glob.glob(f"{SOURCES}/*.sources")]
    others = {path: read_text(path) for path in paths if path != source.path}
    return SourceState(
        observe_file(source.path),
        observe_file(source.keyring),
        observe_file(source.preferences),
        {path: text for path, text in others.items() if text is not None},
    )


def apply_source(source: Source, change: Change, fetch: Fetch | None = None) -> None:
    """Make one change of :func:`plan_source` (SourceError for a key that can't be had or is another, OSError)."""
    verb, path = change.step
    if verb == "key":
        write_file(path, FileState(fetch_key(source, fetch)))
    elif verb == "remove":
        remove_file(path)
    else:
        write_file(path, FileState(render_source(source) if path == source.path else render_pins(source)))


def fetch_key(source: Source, fetch: Fetch | None = None) -> str:
    """Return the source's key in armour, checked against its fingerprints; SourceError when it is not the one."""
    data = (fetch or download)(source.key_url)
    wanted = [openpgp.normal(one) for one in source.fingerprints]
    try:
        found = openpgp.fingerprints(data)
    except openpgp.OpenpgpError as error:
        kind = " but a web page" if data.lstrip()[:1] == b"<" else f" ({error})"
        raise SourceError(
            f"{source.key_url} is not a signing key{kind}; wanted the key with the fingerprint {', '.join(wanted)}. "
            "Mend: open the address; a proxy or a login page may answer in its place, or the key has moved"
        ) from None
    if not set(found) <= set(wanted):
        raise SourceError(
            f"{source.key_url} holds the key {', '.join(found)}, wanted {', '.join(wanted)}; nothing was installed. "
            "Mend: compare it with what the vendor publishes, and set the fingerprint only if it is theirs"
        )
    return openpgp.armor(openpgp.dearmor(data))


def download(url: str) -> bytes:
    """Return what a http or https address holds, by the proxy of the environment; SourceError when it can't be had."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise SourceError(f"{url} is not a http or https address")
    # some servers turn Python's own name away
    request = urllib.request.Request(url, headers={"User-Agent": "labrack"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=KEY_TIMEOUT) as answer:  # noqa: S310
            data: bytes = answer.read(KEY_LIMIT + 1)
    except urllib.error.HTTPError as error:
        raise SourceError(f"{url}: the server answers {error.code} {error.reason}. Mend: check the address") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise SourceError(
            f"{url} can't be fetched: {reason}. Mend: check the node's network, or set http_proxy and https_proxy"
        ) from None
    if len(data) > KEY_LIMIT:
        raise SourceError(f"{url} is not a signing key: it is bigger than {KEY_LIMIT // 1024} KiB")
    return data


# --- apt -------------------------------------------------------------------------------------------------------------

_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "APT_LISTCHANGES_FRONTEND": "none"}
_APT = ["apt-get", "-q", "-y", "-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT}"]
#: ``--allow-downgrades``: a version that is asked for by its number comes, whatever is there.
_INSTALL = ["--no-install-recommends", "--allow-downgrades", "install"]

#: What apt says, in lower case, and what that means with its mend; the first that matches counts.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"conflicting values set for option signed-by",
        "two files name one source with different keys. Mend: remove the entry that is not labrack's",
    ),
    (
        r"no space left on device|enough free space|write error",
        "the disk is full. Mend: make room (apt-get clean; df -h /var /boot) and run again",
    ),
    (
        r"expkeysig|key.* expired|certificate.* expired|expired on",
        "the key that signs the repository has expired. Mend: get the vendor's new key and set its fingerprint",
    ),
    (
        r"no_pubkey|missing key|is not signed|badsig|invalid signature|signatures? couldn't be verified"
        r"|verifying signature|not accepted",
        "the repository is not signed by the wanted key. Mend: compare the key's fingerprint with what the vendor "
        "publishes; a mirror may be damaged",
    ),
    (
        r"release file .* (is expired|is not valid yet)",
        "the repository's index is out of date, or the node's clock is wrong. Mend: check the clock and the mirror",
    ),
    (
        r"hash sum mismatch|unexpected size|mirror sync in progress|file size .* does not match",
        "the repository's index and its files don't match: it is half synced. Mend: run again later, or ask whoever "
        "runs the mirror",
    ),
    (
        r"nosplit|clearsigned file isn't valid",
        "the answer is no repository index but something else, such as a login page. Mend: check the address and the "
        "proxy",
    ),
    (
        r"temporary failure resolving|could not resolve|could not connect|connection (failed|refused|timed out|reset)"
        r"|unable to connect|network is unreachable|no route to host|connection to .* timed out",
        "the server can't be reached. Mend: check the node's network, name service and proxy",
    ),
    (
        r"40[134] +\w|does not have a release file|no longer has a release file",
        "the server does not have it. Mend: check the repository's address, and that it has this system's packages",
    ),
    (
        r"version '.*' for '.*' was not found",
        "the repository does not have that version. Mend: choose one that it has (apt-cache madison PACKAGE)",
    ),
    (
        r"unable to locate package|has no installation candidate",
        "no source of this node has that package. Mend: check the repository's address and the node's other sources",
    ),
    (
        r"could not get lock|unable to acquire the dpkg frontend lock",
        "another apt or dpkg is at work. Mend: wait for it and run again",
    ),
    (
        r"dpkg was interrupted",
        "an earlier installation was broken off. Mend: run dpkg --configure -a on the node",
    ),
    (
        r"held broken packages|unmet dependencies|pkgproblemresolver",
        "the packages don't fit together on this node. Mend: see what is held (apt-mark showhold) or from elsewhere",
    ),
)


def explain(done: Done, what: str) -> str:
    """Return why apt failed: ``what`` was tried, the cause and mend, and apt's own first words of error."""
    text = f"{done.err}\n{done.out}"
    lines = [line.strip() for line in text.splitlines() if re.match(r"\s*(E:|Err:|W: Failed|dpkg: error)", line)]
    words = " ".join(dict.fromkeys(lines))[:600] or text.strip()[-600:]
    cause = next((cause for pattern, cause in _CAUSES if re.search(pattern, text.lower())), "")
    return f"{what}: {cause} (apt says: {words})" if cause else f"{what}: {words}"


def update(source: Source, runner: Runner = run) -> None:
    """Fetch the index of this source alone; SourceError. Other sources, broken or slow, have no part in it."""
    done = runner(
        [
            *_APT,
            "-o",
            f"Dir::Etc::sourcelist={source.path}",
            "-o",
            "Dir::Etc::sourceparts=-",
            "-o",
            "APT::Get::List-Cleanup=0",
            # a source that can't be reached is only a warning otherwise
            "-o",
            "APT::Update::Error-Mode=any",
            "update",
        ],
        timeout=APT_TIMEOUT,
        env=_ENVIRONMENT,
    )
    if done.rc:
        raise SourceError(explain(done, f"the index of {source.uri} can't be had"))


def update_all(runner: Runner = run) -> None:
    """Fetch the index of all sources. A broken one is its owner's matter: what is missing shows afterwards."""
    runner([*_APT, "update"], timeout=APT_TIMEOUT, env=_ENVIRONMENT)


def simulate(packages: Sequence[str], runner: Runner = run, remove: bool = False) -> Simulation:
    """Return what apt would do to install (or remove) packages, each ``name`` or ``name=version``; SourceError."""
    verb = ["remove"] if remove else _INSTALL
    done = runner([*_APT, "-s", "--allow-change-held-packages", *verb, *packages], timeout=APT_TIMEOUT)
    if done.rc:
        raise SourceError(explain(done, f"{' '.join(packages)} can't be {'removed' if remove else 'installed'}"))
    return read_simulation(done.out)


def read_simulation(text: str) -> Simulation:
    """Return what ``apt-get -s`` printed: ``Inst NAME [OLD] (NEW …)`` and ``Remv NAME [OLD]``."""
    installs, replaces, removes = {}, {}, []
    for line in text.splitlines():
        found = re.match(r"(Inst|Remv|Purg) (\S+)(?: \[([^\]]*)\])?(?: \((\S+))?", line)
        if not found:
            continue
        verb, name, old, new = found.groups()
        name = name.partition(":")[0]
        if verb == "Inst":
            installs[name] = new or ""
            if old:
                replaces[name] = old
        else:
            removes.append(name)
    return Simulation(installs, replaces, tuple(removes))


def install(
    packages: Sequence[str],
    sources: Iterable[Source] = (),
    runner: Runner = run,
    held: Iterable[str] = (),
    may_remove: Callable[[str], bool] = lambda _name: False,
) -> Simulation:
    """Install packages, each ``name`` or ``name=version``, and return what came in; SourceError before any change.

    ``sources`` are fetched first. Only what ``may_remove`` agrees to may be removed, and of what is ``held`` nothing
    may change but what is named.
    The other sources' indices are fetched only when something can't be found with those that are there.
    """
    for source in sources:
        update(source, runner)
    try:
        plan = simulate(packages, runner)
    except SourceError:
        update_all(runner)
        plan = simulate(packages, runner)
    named = {package.partition("=")[0] for package in packages}
    _refuse(plan, named, set(held), may_remove)
    command = [*_APT, "--allow-change-held-packages"]
    done = runner([*command, "--download-only", *_INSTALL, *packages], timeout=APT_TIMEOUT, env=_ENVIRONMENT)
    if done.rc and re.search(r"40[34] ", done.err + done.out):
        # an index from before the last point release names files that are gone
        update_all(runner)
        _refuse(simulate(packages, runner), named, set(held), may_remove)
        done = runner([*command, "--download-only", *_INSTALL, *packages], timeout=APT_TIMEOUT, env=_ENVIRONMENT)
    if done.rc:
        raise SourceError(explain(done, f"{' '.join(packages)} can't be downloaded; nothing was installed"))
    keep = ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    # a package in a file of its own counts as a download
    here = [] if any("/" in package for package in packages) else ["--no-download"]
    done = runner([*command, *keep, *here, *_INSTALL, *packages], timeout=APT_TIMEOUT, env=_ENVIRONMENT)
    if done.rc:
        raise SourceError(explain(done, f"{' '.join(packages)} can't be installed"))
    return plan


def _refuse(plan: Simulation, named: set[str], held: set[str], may_remove: Callable[[str], bool]) -> None:
    removes = [name for name in plan.removes if not may_remove(name)]
    if removes:
        raise SourceError(
            f"to install {', '.join(sorted(named))} apt would remove {', '.join(removes)}, so nothing was done. "
            "Mend: remove or replace these by hand if nobody needs them, and run again"
        )
    touched = sorted((set(plan.installs) & held) - named)
    if touched:
        raise SourceError(
            f"to install {', '.join(sorted(named))} apt would change {', '.join(touched)}, which somebody holds, so "
            f"nothing was done. Mend: apt-mark unhold {' '.join(touched)} if that is meant, and run again"
        )


def remove(packages: Sequence[str], runner: Runner = run, purge: bool = False) -> None:
    """Remove packages; SourceError when that would take others along, or fails."""
    others = sorted(set(simulate(packages, runner, remove=True).removes) - set(packages))
    if others:
        raise SourceError(
            f"to remove {', '.join(packages)} apt would remove {', '.join(others)} too, so nothing was removed. "
            "Mend: remove these by hand first if nobody needs them"
        )
    verb = "purge" if purge else "remove"
    done = runner([*_APT, "--allow-change-held-packages", verb, *packages], timeout=APT_TIMEOUT, env=_ENVIRONMENT)
    if done.rc:
        raise SourceError(explain(done, f"{' '.join(packages)} can't be removed"))


@dataclass(frozen=True)
class Package:
    """An installed package: its version, and whether it is held."""

    version: str
    held: bool = False


def observe_packages(names: Sequence[str], runner: Runner = run) -> dict[str, Package]:
    """Return those of the packages that are installed, by one call of dpkg-query."""
    layout = "${Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n"
    found = {}
    for line in runner(["dpkg-query", "-W", "-f", layout, *names]).out.splitlines() if names else ():
        fields = line.split("\t")
        if len(fields) == 4 and fields[3] == "installed":
            found[fields[0]] = Package(fields[1], fields[2] == "hold")
    return found


def hold(packages: Sequence[str], runner: Runner = run, on: bool = True) -> None:
    """Hold packages, or let them go (SourceError): ``apt upgrade`` and unattended-upgrades leave a held one alone."""
    done = runner(["apt-mark", "hold" if on else "unhold", *packages])
    if done.rc:
        raise SourceError(explain(done, f"{' '.join(packages)} can't be {'held' if on else 'let go'}"))


def held_packages(runner: Runner = run) -> list[str]:
    """Return the names of all held packages."""
    return [line.partition(":")[0] for line in runner(["apt-mark", "showhold"]).out.split()]


@contextlib.contextmanager
def unheld(packages: Sequence[str], runner: Runner = run) -> Iterator[None]:
    """Let packages go while something is done, and hold them again whatever comes of it."""
    if packages:
        hold(packages, runner, on=False)
    try:
        yield
    finally:
        if packages:
            hold(packages, runner)
