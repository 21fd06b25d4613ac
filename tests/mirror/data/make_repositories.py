#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs in the build container: packs the trees of /work/spec.json, and makes and signs the repositories.

/work/out/tree is what the mirror serves, /work/out/alternates/<fault> what it serves instead for a fault, and
/work/out/fingerprints.json names the keys.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORK = Path("/work")
TREE, ALTERNATES = WORK / "out/tree", WORK / "out/alternates"
#: A key is made then, and is good for a year: the copy that is exported first has expired.
MADE = "20200101T000000"


def run(*argv, cwd=None):
    """A command's standard output as bytes."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def gpg(*argv):
    """gpg without questions."""
    return run(
        "gpg", "--batch", "--yes", "--no-tty", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *argv
    )


def pack(package, keys):
    """Build one .deb; ``blobs`` are files that several packages have, ``keys`` those that hold a repository's key."""
    root = WORK / package["tree"]
    for path, blob in package.get("blobs", {}).items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        os.link(WORK / "blobs" / blob, root / path.lstrip("/"))
    for path, signer in package.get("keys", {}).items():
        write(root / path.lstrip("/"), dearmored(keys[signer][1]))
    for path, soname in package["libraries"].items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        run("ld", "-shared", "-soname", soname, "-o", str(root / path.lstrip("/")), str(WORK / "empty.o"))
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(root), str(WORK / "debs" / package["id"]))


def make_key(name, algorithm, options):
    """Make a key; return (fingerprint, public key, the same while it has expired)."""
    user = f"labrack test mirror, {name} <{name}@localhost>"
    gpg("--faked-system-time", f"{MADE}!", *options, "--quick-generate-key", user, algorithm, "sign", "1y")
    listed = gpg("--with-colons", "--list-keys", user).decode()
    fingerprint = re.search(r"^fpr:+([0-9A-F]{40}):", listed, re.MULTILINE)[1]
    expired = gpg("--armor", "--export", fingerprint)
    gpg(*options, "--quick-set-expire", fingerprint, "0")
    return fingerprint, gpg("--armor", "--export", fingerprint), expired


def dearmored(key):
    """A key in its binary form."""
    return subprocess.run(["gpg", "--batch", "--dearmor"], input=key, capture_output=True, check=True).stdout


def write(path, content):
    """Write a file of a tree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_index(root, repository, packages):
    """Put Packages and Packages.gz under a tree."""
    for name, content in (("Packages", packages), ("Packages.gz", gzip.compress(packages, mtime=0))):
        write(root / repository["index"] / name, content)


def sign(root, repository, fingerprint):
    """Make Release, Release.gpg and InRelease for the indices of a tree."""
    options = [f"-oAPT::FTPArchive::Release::{key}={value}" for key, value in repository["release"].items()]
    folder = root / repository["root"]
    patterns = "-oAPT::FTPArchive::Release::Patterns::=Packages*"
    release = run("apt-ftparchive", *options, patterns, "release", ".", cwd=folder)
    write(folder / "Release", release)
    signer = ("--local-user", fingerprint, "--digest-algo", "SHA512", "--armor")
    gpg(*signer, "--output", str(folder / "Release.gpg"), "--detach-sign", str(folder / "Release"))
    gpg(*signer, "--output", str(folder / "InRelease"), "--clearsign", str(folder / "Release"))


def without(packages, version):
    """The stanzas of an index that are not of an upstream version."""
    stanzas = [stanza for stanza in packages.decode().split("\n\n") if stanza.strip()]
    gone = re.compile(rf"^Version: (\d+:)?{re.escape(version)}(-|$)", re.MULTILINE)
    return ("\n\n".join(stanza for stanza in stanzas if not gone.search(stanza)) + "\n\n").encode()


def make_repository(repository, key, wrong_key):
    """Make one repository and what replaces parts of it; return the entry for fingerprints.json."""
    pool = TREE / repository["pool"]
    pool.mkdir(parents=True, exist_ok=True)
    for name, identity in repository["packages"].items():
        if not (pool / name).exists():
            os.link(WORK / "debs" / identity, pool / name)
    for path, text in repository["files"].items():
        write(TREE / path, text.encode())
    fingerprint, good, expired = key
    for root, public in ((TREE, good), (ALTERNATES / "expired-key", expired), (ALTERNATES / "wrong-key", wrong_key)):
        write(root / repository["key"], dearmored(public) if repository["key"].endswith("noarmor.gpg") else public)
    base = TREE / repository["base"]
    packages = run("apt-ftparchive", "packages", os.path.relpath(pool, base), cwd=base)
    write_index(TREE, repository, packages)
    sign(TREE, repository, fingerprint)
    fewer = without(packages, repository["missing"])
    if fewer == packages:
        raise SystemExit(f"{repository['name']}: nothing is of version {repository['missing']}")
    write_index(ALTERNATES / "missing-version", repository, fewer)
    sign(ALTERNATES / "missing-version", repository, fingerprint)
    write_index(ALTERNATES / "half-synced", repository, fewer)
    return {"fingerprint": fingerprint, "key": f"/{repository['key']}", "root": f"/{repository['root']}"}


def main():
    """Make everything."""
    spec = json.loads((WORK / "spec.json").read_text(encoding="utf-8"))
    os.environ["GNUPGHOME"] = str(WORK / "gnupg")
    (WORK / "gnupg").mkdir(mode=0o700)
    (WORK / "debs").mkdir()
    run("as", "-o", str(WORK / "empty.o"), "/dev/null")
    _, wrong_key, _ = make_key("wrong", "ed25519", [])
    keys, index = {}, {}
    for repository in spec["repositories"]:
        # where several have one key, they name it
        signer = repository.setdefault("signer", repository["key"])
        keys[signer] = keys.get(signer) or make_key(repository["name"], repository["algorithm"], repository["gpg"])
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(pack, spec["packages"], [keys] * len(spec["packages"])))
    for repository in spec["repositories"]:
        index[repository["name"]] = make_repository(repository, keys[repository["signer"]], wrong_key)
    for path, identity in spec.get("loose", {}).items():
        (TREE / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(WORK / "debs" / identity, TREE / path)
    shutil.rmtree(WORK / "gnupg", ignore_errors=True)
    (WORK / "out/fingerprints.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
