"""A package source: its key without gpg, its files, the conflicts with others, and what apt says."""

from __future__ import annotations

import base64
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import apt_source, openpgp
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import (
    Package,
    Pin,
    Source,
    SourceError,
    SourceState,
    explain,
    plan_source,
    read_entries,
    read_simulation,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, FileState

#: Made with gpg for this test; its fingerprint is what gpg says.
KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawWQLhYJKwYBBAHaRw8BAQdA9O58sO7ZwknSAyRYhC1en5nJkcJq7dWwiZHL
HYBIyBC0H2xhYnJhY2sgdGVzdCA8dGVzdEBsYWIuaW52YWxpZD6IkAQTFggAOBYh
BE2YdTSwo15TYIiRv2YRxEKb56K9BQJrBZAuAhsDBQsJCAcCBhUKCQgLAgQWAgMB
Ah4BAheAAAoJEGYRxEKb56K9xKwBAP2azgVSOBgkkSAbu/Bwgi9kwCy4n8U1PolJ
jxwahgucAQD5Y2DjaCPbampF/HBVyVjvAJ4R1QqfVb6X4GaxgZbVCg==
=WqUR
-----END PGP PUBLIC KEY BLOCK-----
"""
FINGERPRINT = "4D987534B0A35E53608891BF6611C4429BE7A2BD"
OTHER = "0" * 40
TOOLS = Source(
    "labrack-tools",
    "http://mirror.lab/tools/deb/amd64/",
    "http://mirror.lab/tools/key",
    (FINGERPRINT,),
    architecture="amd64",
    pins=(Pin(("tool", "libtool1"), "version 1.2-1", 1001), Pin(("tool",), 'origin "mirror.lab"', 700)),
)


# --- keys ------------------------------------------------------------------------------------------------------------


def new_packet(tag: int, body: bytes) -> bytes:
    """A packet in the new format, with the shortest length that fits."""
    size = len(body)
    if size < 192:
        head = bytes([size])
    elif size < 8384:
        head = bytes([((size - 192) >> 8) + 192, (size - 192) & 255])
    else:
        head = b"\xff" + size.to_bytes(4, "big")
    return bytes([0xC0 | tag]) + head + body


def test_fingerprint_is_gpgs() -> None:
    assert openpgp.fingerprints(KEY.encode()) == [FINGERPRINT]
    assert openpgp.fingerprints(openpgp.dearmor(KEY.encode())) == [FINGERPRINT]
    assert openpgp.armor(openpgp.dearmor(KEY.encode())) == KEY


def test_armour_of_others() -> None:
    commented = KEY.replace("BLOCK-----\n\n", "BLOCK-----\nVersion: GnuPG v1\nComment: x\n\n", 1).replace("\n", "\r\n")
    assert openpgp.fingerprints(b"Some words first.\n" + commented.encode()) == [FINGERPRINT]
    unchecked = KEY.replace("=WqUR\n", "")
    assert openpgp.fingerprints(unchecked.encode() + KEY.encode()) == [FINGERPRINT, FINGERPRINT]


@given(st.lists(st.tuples(st.sampled_from([2, 6, 13, 14]), st.binary(max_size=9000)), max_size=4), st.booleans())
def test_any_packets(packets: list[tuple[int, bytes]], version6: bool) -> None:
    version = b"\x06" if version6 else b"\x04"
    made = [(tag, version + body if tag == 6 else body) for tag, body in packets]
    data = b"".join(new_packet(tag, body) for tag, body in made)
    keys = [body for tag, body in made if tag == 6]
    if version6:
        wanted = [hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper() for body in keys]
    else:
        wanted = [hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper() for body in keys]
    if keys:
        assert openpgp.fingerprints(data) == wanted
        assert openpgp.fingerprints(openpgp.armor(data).encode()) == wanted
    else:
        with pytest.raises(openpgp.OpenpgpError):
            openpgp.fingerprints(data)


@given(st.binary(max_size=300))
def test_anything_is_refused_by_name(data: bytes) -> None:
    try:
        openpgp.fingerprints(data)
    except openpgp.OpenpgpError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no OpenPGP block"),
        (b"<!DOCTYPE html><html>", "no OpenPGP block"),
        (openpgp.dearmor(KEY.encode())[:-3], "cut off"),
        (KEY.replace("mDME", "mDMF").encode(), "checksum"),
        (KEY.replace("mDME", "m!ME").encode(), "damaged"),
        (KEY.replace("PUBLIC", "PRIVATE").encode(), "PRIVATE KEY BLOCK"),
        (new_packet(5, b"\x04secret"), "secret key"),
        (new_packet(6, b"\x03old"), "version 3"),
        (new_packet(13, b"name only"), "no public key"),
        (b"\x9b\x00", "unknown length"),
        (b"\xc6\xe5abc", "unknown length"),
    ],
)
def test_what_is_no_certificate(data: bytes, words: str) -> None:
    with pytest.raises(openpgp.OpenpgpError, match=words):
        openpgp.fingerprints(data)


@pytest.mark.parametrize(
    "text", [FINGERPRINT.lower(), "0x" + FINGERPRINT, " ".join(FINGERPRINT[i : i + 4] for i in range(0, 40, 4))]
)
def test_fingerprints_as_people_write_them(text: str) -> None:
    assert openpgp.normal(text) == FINGERPRINT


def test_a_short_key_id_is_no_fingerprint() -> None:
    with pytest.raises(openpgp.OpenpgpError, match="40 or 64"):
        openpgp.normal("9BE7A2BD")


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_of_a_flat_source() -> None:
    assert apt_source.render_source(TOOLS) == (
        "# Written by labrack.\nTypes: deb\nURIs: http://mirror.lab/tools/deb/amd64/\nSuites: /\n"
        "Architectures: amd64\nSigned-By: /etc/apt/keyrings/labrack-tools.asc\n"
    )
    assert apt_source.render_pins(TOOLS) == (
        "# Written by labrack.\nPackage: tool libtool1\nPin: version 1.2-1\nPin-Priority: 1001\n\n"
        'Package: tool\nPin: origin "mirror.lab"\nPin-Priority: 700\n'
    )


def made(source: Source) -> SourceState:
    """A source as it is once it has been applied."""
    return SourceState(
        FileState(apt_source.render_source(source)),
        FileState(KEY),
        FileState(apt_source.render_pins(source)) if source.pins else None,
    )


def test_plan_and_undo() -> None:
    steps = [change.step for change in plan_source(SourceState(), TOOLS)]
    assert steps == [("key", TOOLS.keyring), ("write", TOOLS.path), ("write", TOOLS.preferences)]
    assert plan_source(made(TOOLS), TOOLS) == []
    gone = [change.step for change in plan_source(made(TOOLS), TOOLS, present=False)]
    assert gone == [("remove", TOOLS.path), ("remove", TOOLS.preferences), ("remove", TOOLS.keyring)]
    assert plan_source(SourceState(), TOOLS, present=False) == []


@pytest.mark.parametrize(
    "key", [FileState("<html>"), FileState(KEY, "0600"), FileState(KEY.replace("mDME", "mDMF")), FileState("")]
)
def test_a_key_file_that_is_not_right_is_fetched_again(key: FileState) -> None:
    assert [change.step[0] for change in plan_source(replace(made(TOOLS), key=key), TOOLS)] == ["key"]


def test_another_fingerprint_asks_for_another_key() -> None:
    assert [one.step[0] for one in plan_source(made(TOOLS), replace(TOOLS, fingerprints=(OTHER,)))] == ["key"]
    assert plan_source(made(TOOLS), replace(TOOLS, fingerprints=(OTHER, FINGERPRINT.lower()))) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/apt/sources.list.d/a.list", "deb http://mirror.lab/tools/deb/$(ARCH) /\n"),
        (
            "/etc/apt/sources.list",
            "# x\ndeb [arch=amd64 signed-by=/usr/share/keyrings/t.gpg] http://mirror.lab/tools/deb/amd64/ /",
        ),
        (
            "/etc/apt/sources.list.d/b.sources",
            "Types: deb deb-src\nURIs: http://x/\n http://mirror.lab/tools/deb/amd64\nSuites: /\n",
        ),
        (
            "/etc/apt/sources.list.d/c.sources",
            "# c\n\nTypes: deb\nURIs: http://x/\nSuites: a\n\n"
            "Types: deb\nURIs: http://mirror.lab/tools/deb/amd64/\nSuites: /\n"
            "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDME\n",
        ),
    ],
)
def test_the_same_source_with_another_key_is_named(path: str, text: str) -> None:
    with pytest.raises(SourceError) as caught:
        plan_source(replace(made(TOOLS), others={path: text}), TOOLS)
    assert path in str(caught.value) and f"remove {path}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "deb http://mirror.lab/tools/deb/amd64/ stable main\n",
        "deb-src http://mirror.lab/tools/deb/amd64/ /\n",
        "#deb http://mirror.lab/tools/deb/amd64/ /\n",
        "deb http://mirror.lab/tools/deb/arm64/ /\n",
        f"deb [signed-by={TOOLS.keyring}] http://mirror.lab/tools/deb/amd64/ /\n",
        "deb [enabled=no] http://mirror.lab/tools/deb/amd64/ /\n",
    ],
)
def test_what_is_another_source_is_left_alone(text: str) -> None:
    assert plan_source(replace(made(TOOLS), others={"/etc/apt/sources.list": text}), TOOLS) == []


def test_disabled_stanza_is_none() -> None:
    text = "Enabled: no\nTypes: deb\nURIs: http://x/\nSuites: /\n"
    assert list(read_entries("a.sources", text)) == []


# --- fetching the key ------------------------------------------------------------------------------------------------

ANSWERS = {
    "/key": KEY.encode(),
    "/binary": openpgp.dearmor(KEY.encode()),
    "/page": b"\n<html><body>Please log in</body></html>",
    "/huge": b"x" * (apt_source.KEY_LIMIT + 1),
    "/nothing": b"",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = ANSWERS.get(self.path)
            self.send_response(404 if body is None or "Python" in self.headers["User-Agent"] else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["/key", "/binary"])
def test_a_key_is_fetched_and_written_in_armour(server: str, path: str) -> None:
    assert apt_source.fetch_key(replace(TOOLS, key_url=server + path)) == KEY


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "is not a signing key but a web page"),
        ("/huge", "bigger than 1024 KiB"),
        ("/nothing", "no OpenPGP block"),
        ("/404", "404"),
    ],
)
def test_what_is_no_key_is_refused(server: str, path: str, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        apt_source.fetch_key(replace(TOOLS, key_url=server + path))
    assert words in str(caught.value) and server + path in str(caught.value)


def test_another_key_is_refused_with_both_fingerprints(server: str) -> None:
    source = replace(TOOLS, key_url=f"{server}/key", fingerprints=(OTHER,))
    with pytest.raises(SourceError) as caught:
        apt_source.fetch_key(source)
    assert all(text in str(caught.value) for text in (source.key_url, OTHER, FINGERPRINT))


def test_a_file_with_a_second_key_is_refused() -> None:
    both = openpgp.dearmor(KEY.encode()) + new_packet(6, b"\x04another")
    with pytest.raises(SourceError):
        apt_source.fetch_key(TOOLS, lambda _url: both)


def test_a_server_that_is_not_there_is_told(server: str) -> None:
    with pytest.raises(SourceError, match="can't be fetched"):
        apt_source.download("http://127.0.0.1:1/key")
    with pytest.raises(SourceError, match="not a http"):
        apt_source.download("file:///etc/passwd")


# --- apt -------------------------------------------------------------------------------------------------------------

#: Recorded from apt 3.0 (Debian 13).
SIMULATED = """NOTE: This is only a simulation!
Inst tini (0.19.0-3+b8 Debian:13.5/stable [amd64])
Inst libc6 [2.41-12] (2.41-12+deb13u1 Debian:13.5/stable [amd64]) [libc-bin:amd64 ]
Remv nvidia-docker2 [2.13.0-1]
Inst tool:amd64 [1.1-1] (1.2-1 mirror.lab [amd64])
Conf tini (0.19.0-3+b8 Debian:13.5/stable [amd64])
"""


def test_a_simulation_is_read() -> None:
    found = read_simulation(SIMULATED)
    assert found.installs == {"tini": "0.19.0-3+b8", "libc6": "2.41-12+deb13u1", "tool": "1.2-1"}
    assert found.replaces == {"libc6": "2.41-12", "tool": "1.1-1"}
    assert found.removes == ("nvidia-docker2",)


class Apt:
    """Answers apt-get; ``answers`` are by the word of the command line that matters, the first that fits counts."""

    def __init__(self, **answers: list[Done] | Done) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.lines: list[list[str]] = []

    def __call__(self, argv: list[str], **_options: Any) -> Done:
        words = ["-s", "--download-only", "--no-download", "update", "purge", "remove", "hold", "unhold"]
        names = ["simulate", "download", "install", "update", "purge", "remove", "hold", "unhold"]
        verb = next(name for word, name in zip(words, names, strict=True) if word in argv)
        if verb == "update" and "Dir::Etc::sourceparts=-" not in argv:
            verb = "update_all"
        self.asked.append(verb)
        self.lines.append(argv)
        answer = self.answers.get(verb, Done(0, "", ""))
        return answer.pop(0) if isinstance(answer, list) else answer


def test_an_installation_looks_first_and_downloads_before_it_unpacks() -> None:
    apt = Apt(simulate=Done(0, "Inst tool (1.2-1 x [amd64])\n", ""))
    came = apt_source.install(["tool=1.2-1"], [TOOLS], apt)
    assert came.installs == {"tool": "1.2-1"}
    assert apt.asked == ["update", "simulate", "download", "install"]
    assert f"Dir::Etc::sourcelist={TOOLS.path}" in apt.lines[0] and "APT::Get::List-Cleanup=0" in apt.lines[0]
    assert all("--no-install-recommends" in line for line in apt.lines[1:])


def test_nothing_is_installed_that_would_remove_something() -> None:
    apt = Apt(simulate=Done(0, SIMULATED, ""))
    with pytest.raises(SourceError, match="would remove nvidia-docker2"):
        apt_source.install(["tool"], (), apt)
    assert apt.asked == ["simulate"]


def test_what_somebody_holds_stays() -> None:
    apt = Apt(simulate=Done(0, SIMULATED.replace("Remv", "Conf"), ""))
    with pytest.raises(SourceError, match="would change libc6"):
        apt_source.install(["tool"], (), apt, held=["libc6", "tool"])


def test_stale_lists_are_renewed_when_something_is_missing_and_when_a_file_is_gone() -> None:
    missing = Done(100, "", "E: Unable to locate package tool\n")
    good = Done(0, "Inst tool (1 x)\n", "")
    gone = Done(100, "", "E: Failed to fetch http://deb.debian.org/x.deb  404  Not Found\n")
    apt = Apt(simulate=[missing, good, good], download=[gone, Done(0, "", "")])
    apt_source.install(["tool"], (), apt)
    assert apt.asked == [
        "simulate",
        "update_all",
        "simulate",
        "download",
        "update_all",
        "simulate",
        "download",
        "install",
    ]


def test_a_failed_download_installs_nothing() -> None:
    full = Done(100, "", "E: You don't have enough free space in /var/cache/apt/archives/.\n")
    apt = Apt(simulate=Done(0, "Inst tool (1 x)\n", ""), download=full)
    with pytest.raises(SourceError, match=r"nothing was installed: the disk is full\. Mend"):
        apt_source.install(["tool"], (), apt)
    assert "install" not in apt.asked


def test_removing_takes_nobody_along() -> None:
    apt = Apt(simulate=Done(0, "Remv tool [1]\nRemv other [2]\n", ""))
    with pytest.raises(SourceError, match="would remove other too"):
        apt_source.remove(["tool"], apt)
    assert apt.asked == ["simulate"]
    apt = Apt(simulate=Done(0, "Remv tool [1]\n", ""))
    apt_source.remove(["tool"], apt, purge=True)
    assert apt.asked == ["simulate", "purge"]


def test_what_is_let_go_is_held_again_whatever_happens() -> None:
    apt = Apt()
    with pytest.raises(ZeroDivisionError), apt_source.unheld(["tool"], apt):
        raise ZeroDivisionError
    assert apt.asked == ["unhold", "hold"]


def test_packages_and_holds_in_one_call() -> None:
    out = "tool\t1.2-1\thold\tinstalled\nold\t1\tdeinstall\tconfig-files\nlibtool1\t1.2-1\tinstall\tinstalled\n"
    found = apt_source.observe_packages(["tool"], lambda argv: Done(1, out, "dpkg-query: no packages found"))
    assert found == {"tool": Package("1.2-1", True), "libtool1": Package("1.2-1")}


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("E: Conflicting values set for option Signed-By regarding source http://x/ /: a != b", "one source"),
        ("E: Write error - write (28: No space left on device)", "disk is full"),
        ("W: GPG error: http://x: The following signatures were invalid: EXPKEYSIG 0123 Old Key", "expired"),
        ("E: The repository 'http://x InRelease' is not signed.", "not signed by the wanted key"),
        ("W: ... couldn't be verified because the public key is not available: NO_PUBKEY 0123", "not signed by"),
        ("E: Failed to fetch http://x/Packages  Hash Sum mismatch", "half synced"),
        ("E: Failed to fetch http://x/Packages  File has unexpected size (5 != 6). Mirror sync in progress?", "half"),
        ("E: Release file for http://x/InRelease is expired (invalid since 3d). Updates", "out of date"),
        ("E: Clearsigned file isn't valid, got 'NOSPLIT' (does the network require authentication?)", "login page"),
        ("E: Failed to fetch http://x/InRelease  Could not resolve 'x'", "can't be reached"),
        ("E: Failed to fetch http://x/a.deb  404  Not Found [IP: 10.0.0.1 80]", "does not have it"),
        ("E: Version '9' for 'tool' was not found", "not have that version"),
        ("E: Unable to locate package tool", "No source of this node".lower()),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 12 (apt)", "another apt"),
        ("E: dpkg was interrupted, you must manually run 'dpkg --configure -a'", "dpkg --configure -a"),
        ("E: Unable to correct problems, you have held broken packages.", "don't fit together"),
    ],
)
def test_causes(said: str, cause: str) -> None:
    words = explain(Done(100, "", said + "\n"), "tried it")
    assert words.startswith("tried it: ") and cause in words and "Mend: " in words and said[3:30] in words


def test_an_unknown_cause_leaves_apts_own_words() -> None:
    assert explain(Done(1, "", "E: The moon is wrong\n"), "tried it") == "tried it: E: The moon is wrong"


def test_dnf_source() -> None:
    source = replace(TOOLS, family="redhat", uri="http://mirror.lab/rpm/$basearch", pins=())
    assert source.path == "/etc/yum.repos.d/labrack-tools.repo"
    text = apt_source.render_source(source)
    assert "[labrack-tools]\n" in text and "gpgcheck=0\nrepo_gpgcheck=1\n" in text
    assert f"gpgkey=file://{source.keyring}\n" in text and source.keyring.startswith("/etc/pki/rpm-gpg/")
    assert "gpgcheck=1\nrepo_gpgcheck=0\n" in apt_source.render_source(replace(source, signed_packages=True))


def test_base64_of_the_checksum_is_what_gpg_writes() -> None:
    assert base64.b64encode(openpgp._crc24(openpgp.dearmor(KEY.encode())).to_bytes(3, "big")) == b"WqUR"


def test_apply_writes_and_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, FileState] = {}
    monkeypatch.setattr(apt_source, "write_file", lambda path, state: written.__setitem__(path, state))
    monkeypatch.setattr(apt_source, "remove_file", written.pop)
    for change in plan_source(SourceState(), TOOLS):
        apt_source.apply_source(TOOLS, change, lambda _url: KEY.encode())
    found = SourceState(written.get(TOOLS.path), written.get(TOOLS.keyring), written.get(TOOLS.preferences))
    assert plan_source(found, TOOLS) == []
    for change in plan_source(found, TOOLS, present=False):
        apt_source.apply_source(TOOLS, change)
    assert written == {}
