# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find what is forgotten on the lab's GPUs, warn its owner, end it: ``python -m labrack_skypilot.reaper``.

A timer starts it as the server's user. It asks the server by SkyPilot's SDK (0.14.1), Kubernetes by kubectl and Slurm
by squeue what is there, asks the cards of each pod and job by nvidia-smi in it, and does what :mod:`.reaping` decides.
Settings are a JSON document, see :class:`Place` and :class:`.reaping.Settings`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import re
import shlex
import shutil
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Protocol, TypeVar

from labrack_skypilot import reaping
from labrack_skypilot.reaping import Action, Cluster, Memory, Observed, Part, Settings

SETTINGS = "/etc/labrack/skypilot_reaper.json"
#: Asks the cards thrice, as one look says little.
SAMPLE = (
    "for i in 1 2 3; do nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits || exit 1; sleep 2; done"
)
SQUEUE = ("squeue", "--noheader", "--format=%i|%u|%T|%V|%b|%D|%j")
#: Jobs of SkyPilot are named for their cluster, which ends with its user's hash, or with that of the user's token.
JOB_NAME = re.compile(r".+-([0-9a-f]{8}|sa-[0-9a-f]{16})")
#: SkyPilot's errors of a server that is busy, or not up yet (sky/exceptions.py).
PASSING = ("ServerTemporarilyUnavailableError", "ApiServerConnectionError", "RequestInterruptedError")
TRIES, PAUSE = 5, 2.0
TIMEOUT = 60.0
WEEK = 7 * 86400
Got = TypeVar("Got")


class ReaperError(RuntimeError):
    """What keeps the reaper from its work; the message says cause and mend."""


@dataclass(frozen=True)
class Place:
    """Where everything is. ``contexts`` are kubectl's, ``slurm`` has the words before a command by cluster.

    ``mail_domain`` is what follows an owner's name in their address, "" for no mail. ``unix_names`` has Unix names by
    those in SkyPilot.
    """

    endpoint: str = "http://127.0.0.1:46580"
    token_file: str = ""
    kubectl: Sequence[str] = ("kubectl",)
    kubeconfig: str = ""
    contexts: Sequence[str] = ()
    slurm: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mail_domain: str = ""
    report_mail: str = ""
    webhook_file: str = ""
    messages: str = "/run/labrack/messages"
    state: str = "/var/lib/skypilot/reaper.json"
    reports: str = "/var/lib/skypilot/reports"
    unix_names: Mapping[str, str] = field(default_factory=dict)


def load(path: str) -> tuple[Settings, Place]:
    """Return the settings of a file; ReaperError that names the key for a wrong one."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("not an object")
        settings = {one.name: document.pop(one.name) for one in fields(Settings) if one.name in document}
        place = {one.name: document.pop(one.name) for one in fields(Place) if one.name in document}
        if document:
            raise ValueError(f"unknown key {sorted(document)[0]}")
        if "spare" in settings:
            settings["spare"] = tuple(settings["spare"])
        return Settings(**settings), Place(**place)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ReaperError(f"{path} can't be read: {error}. Mend: run the playbook again") from None


# --- the server ------------------------------------------------------------------------------------------------------


class Server(Protocol):
    """What the reaper asks of a SkyPilot server."""

    def clusters(self) -> list[Any]:
        """Return StatusResponse of every cluster, those of managed jobs and services too."""

    def hashes(self) -> list[str]:
        """Return the hashes of the server's users and of their tokens."""

    def autostop(self, name: str, minutes: int) -> None:
        """Give a cluster an autostop that ends it."""

    def down(self, name: str) -> None:
        """End a cluster."""


class Sdk:
    """The server by SkyPilot's SDK, which is imported only here."""

    def __init__(self, place: Place) -> None:
        """Prepare SkyPilot's environment and import it."""
        os.environ["SKYPILOT_API_SERVER_ENDPOINT"] = place.endpoint
        os.environ["SKYPILOT_DISABLE_USAGE_COLLECTION"] = "1"
        # else the SDK starts a server of its own where none answers on this machine
        os.environ["SKYPILOT_DISABLE_LOCAL_API_SERVER"] = "1"
        if place.token_file:
            try:
                token = Path(place.token_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ReaperError(f"the token can't be read: {error}. Mend: run the playbook again") from None
            os.environ["SKYPILOT_SERVICE_ACCOUNT_TOKEN"] = token
        import sky
        from sky.server import common

        self._sky: Any = sky
        self._common: Any = common

    def clusters(self) -> list[Any]:
        """Return StatusResponse of every cluster."""

        def ask() -> list[Any]:
            # status leaves out clusters of managed jobs and services without this; their pods would look unknown
            os.environ["SKYPILOT_DEBUG"] = "1"
            try:
                request = self._sky.status(refresh=self._sky.StatusRefreshMode.AUTO, all_users=True)
            finally:
                del os.environ["SKYPILOT_DEBUG"]
            return list(self._sky.get(request))

        return retried(ask)

    def hashes(self) -> list[str]:
        """Return the hashes of the server's users, and of their tokens, by which clients launch."""

        def ask(path: str, key: str) -> list[str]:
            answer = self._common.make_authenticated_request("GET", path)
            answer.raise_for_status()
            return [str(one[key]) for one in answer.json()]

        tokens = retried(lambda: ask("/users/service-account-tokens", "service_account_user_id"))
        return retried(lambda: ask("/users", "id")) + tokens

    def autostop(self, name: str, minutes: int) -> None:
        """Give a cluster an autostop that ends it."""
        retried(lambda: self._sky.get(self._sky.autostop(name, minutes, down=True)))

    def down(self, name: str) -> None:
        """End a cluster; one that is gone already is fine."""
        try:
            retried(lambda: self._sky.get(self._sky.down(name)))
        except Exception as error:
            if type(error).__name__ != "ClusterDoesNotExist":
                raise


def passing(error: BaseException) -> bool:
    """Return whether an error of the server may be gone at another try: it is busy, or just starts."""
    if type(error).__name__ in PASSING:
        return True
    code = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(code, int):
        return code in (429, 502, 503, 504)
    if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, PermissionError)):
        return True
    return bool(re.search(r"\b50[234]\b", str(error)))


def retried(ask: Callable[[], Got], wait: Callable[[float], None] = time.sleep) -> Got:
    """Return an answer of the server, asking again where an error may pass; the last error otherwise."""
    for attempt in range(1, TRIES):
        try:
            return ask()
        except Exception as error:
            if not passing(error):
                raise
            wait(PAUSE * 2 ** (attempt - 1))
    return ask()


def cluster_of(one: Any) -> Cluster:
    """Return what counts of a StatusResponse (sky/schemas/api/responses.py)."""

    def get(name: str, default: Any = None) -> Any:
        found = one.get(name, default) if isinstance(one, Mapping) else getattr(one, name, default)
        return default if found is None else found

    status = get("status", "")
    return Cluster(
        name=str(get("name", "")),
        number=str(get("cluster_hash", "")),
        on_cloud=str(get("cluster_name_on_cloud", "") or get("name", "")),
        user=str(get("user_name", "")),
        user_hash=str(get("user_hash", "")),
        status=str(getattr(status, "value", status)),
        autostop=int(get("autostop", -1)),
        managed=bool(get("is_managed", False)),
        init_kind=str(get("init_kind", "")),
    )


# --- pods and jobs ---------------------------------------------------------------------------------------------------

#: Runs a command: exit status and output, 127 for one that is not there.
Runner = Callable[[Sequence[str]], "tuple[int, str]"]


def run(argv: Sequence[str]) -> tuple[int, str]:
    """Run a command without a shell; 124 for one that gave no answer in time."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{argv[0]}: not found"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 124, str(error)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


class Field:
    """Kubernetes and Slurm, where pods and jobs are."""

    def __init__(self, place: Place, runner: Runner = run) -> None:
        """Remember where they are."""
        self._place = place
        self._run = runner

    def _kubectl(self, context: str, *words: str) -> tuple[int, str]:
        config = ["--kubeconfig", self._place.kubeconfig] if self._place.kubeconfig else []
        return self._run([*self._place.kubectl, *config, "--context", context, *words])

    def _slurm(self, cluster: str, user: str, *words: str) -> tuple[int, str]:
        before = list(self._place.slurm[cluster])
        # as SkyPilot itself becomes the user, so that its sudo rule does (sky/utils/command_runner.py)
        argv = (
            ["sudo", "-n", "-u", user, "-H", "--", "/bin/bash", "--login", "-c", shlex.join(words)] if user else words
        )
        # ssh hands its words to a shell
        return self._run([*before, *([shlex.join(argv)] if before[:1] == ["ssh"] else argv)])

    def parts(self) -> tuple[list[Part], list[str]]:
        """Return SkyPilot's pods and jobs, and words about the places that did not tell of theirs."""
        found: list[Part] = []
        silent = []
        for context in self._place.contexts:
            rc, out = self._kubectl(context, "get", "pods", "-A", "-l", "parent=skypilot", "-o", "json")
            try:
                if rc:
                    raise ValueError(out.strip() or f"exit status {rc}")
                found += pods(context, json.loads(out))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                silent.append(f"Kubernetes {context}: {error}")
        for cluster in self._place.slurm:
            rc, out = self._slurm(cluster, "", *SQUEUE)
            if rc:
                silent.append(f"Slurm {cluster}: {out.strip() or f'exit status {rc}'}")
            else:
                found += jobs(cluster, out)
        return found, silent

    def busy(self, parts: Sequence[Part]) -> dict[str, float | None]:
        """Return the most that the cards of each running part did, None where it can't be told."""
        found = {}
        for part in parts:
            if part.gpus and part.state == "running":
                found[part.key] = most_of(*self._sample(part))
        return found

    def _sample(self, part: Part) -> tuple[int, str]:
        if part.kind == "pod":
            where = ("-n", part.namespace, part.name, "-c", "ray-node")
            return self._kubectl(part.place, "exec", *where, "--", "sh", "-c", SAMPLE)
        step = ("srun", f"--jobid={part.name}", "--overlap", "--ntasks-per-node=1", "--quiet")
        return self._slurm(part.place, part.user, *step, "sh", "-c", SAMPLE)

    def delete_pod(self, context: str, namespace: str, name: str) -> None:
        """Delete a pod; ReaperError where Kubernetes refuses."""
        rc, out = self._kubectl(context, "delete", "pod", "-n", namespace, name, "--ignore-not-found", "--wait=false")
        if rc:
            raise ReaperError(f"kubectl delete pod {name}: {out.strip()}")

    def scancel(self, cluster: str, user: str, job: str) -> None:
        """Cancel a Slurm job as its user; ReaperError where Slurm refuses."""
        rc, out = self._slurm(cluster, user, "scancel", job)
        if rc:
            raise ReaperError(f"scancel {job}: {out.strip()}")


_POD_STATES = {"Pending": "waiting", "Running": "running"}


def pods(context: str, document: Any) -> list[Part]:
    """Return the pods of ``kubectl get pods -o json`` that are SkyPilot's."""
    found = []
    for item in document["items"]:
        meta, spec = item["metadata"], item.get("spec") or {}
        labels = meta.get("labels") or {}
        cluster = labels.get("skypilot-cluster-name") or labels.get("skypilot-cluster")
        if not cluster:
            continue
        gpus = 0
        for container in spec.get("containers") or []:
            limits = (container.get("resources") or {}).get("limits") or {}
            # nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-1g.5gb
            gpus += sum(int(count) for name, count in limits.items() if name.startswith("nvidia.com/"))
        annotations = meta.get("annotations") or {}
        state = _POD_STATES.get((item.get("status") or {}).get("phase", ""), "ended")
        found.append(
            Part(
                "pod",
                context,
                meta["name"],
                meta.get("uid", ""),
                cluster,
                annotations.get("skypilot-user") or labels.get("skypilot-user", ""),
                "ended" if meta.get("deletionTimestamp") else state,
                gpus,
                meta.get("namespace", "default"),
            )
        )
    return found


_JOB_STATES = {"PENDING": "waiting", "CONFIGURING": "waiting", "RUNNING": "running", "SUSPENDED": "running"}


def jobs(cluster: str, text: str) -> list[Part]:
    """Return the jobs of :data:`SQUEUE` that are SkyPilot's by their names."""
    found = []
    for line in text.splitlines():
        words = line.strip().split("|", 6)
        if len(words) != 7 or not JOB_NAME.fullmatch(words[6]):
            continue
        number, user, state, submitted, gres, nodes, name = words
        cards = re.search(r"gpu(?:[:/][A-Za-z][^:,()]*)?[:=](\d+)", gres)
        count = (int(cards.group(1)) if cards else int("gpu" in gres)) * int(nodes or 1)
        found.append(Part("job", cluster, number, submitted, name, user, _JOB_STATES.get(state, "ended"), count))
    return found


def most_of(rc: int, out: str) -> float | None:
    """Return the highest of the percentages that nvidia-smi printed, None where it told none, or not of each card.

    A card that is split tells none ("[N/A]").
    """
    words = out.split("\n") if rc == 0 else []
    lines = [line.strip() for line in words if line.strip()]
    if not lines or not all(re.fullmatch(r"\d+(\.\d+)?", line) for line in lines):
        return None
    return max(float(line) for line in lines)


# --- telling people --------------------------------------------------------------------------------------------------


class Voice:
    """Mail, webhook and what is shown at login. Words about what could not be told go to standard error."""

    def __init__(self, place: Place, port: int = smtplib.SMTP_PORT) -> None:
        """Remember where they are."""
        self._place = place
        self._port = port

    def unix_name(self, owner: str) -> str:
        """Return an owner's Unix name, "" for one without an account here."""
        name = self._place.unix_names.get(owner, owner.split("@")[0])
        if not re.fullmatch(r"[a-z_][a-z0-9_.-]{0,31}", name):
            return ""
        try:
            pwd.getpwnam(name)
        except KeyError:
            return ""
        return name

    def show(self, messages: Mapping[str, str]) -> set[str]:
        """Write each owner's messages and take others' away; return the owners who have theirs."""
        folder = Path(self._place.messages)
        shown = set()
        wanted: dict[str, str] = {}
        for owner, text in messages.items():
            name = self.unix_name(owner)
            if name:
                wanted[name] = wanted.get(name, "") + text
                shown.add(owner)
        try:
            for name, text in wanted.items():
                write(folder / name, text, 0o644)
            for path in folder.iterdir():
                if path.name not in wanted:
                    path.unlink()
        except OSError as error:
            _complain(f"no message at login: {error}")
            return set()
        return shown

    def mail(self, to: str, subject: str, text: str) -> bool:
        """Send a mail by sendmail, or by the mailer's port on this host; return whether that took it.

        A unit without privileges can't hand anything to the sendmail of Postfix or Exim, which change their group.
        """
        message = EmailMessage()
        message["To"], message["Subject"] = to, subject
        message["From"] = f"labrack@{socket.getfqdn()}"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text + "\n")
        program = shutil.which("sendmail") or "/usr/sbin/sendmail"
        try:
            done = subprocess.run(
                [program, "-t", "-i"], input=message.as_bytes(), timeout=TIMEOUT, capture_output=True, check=False
            )
            if done.returncode == 0:
                return True
            problem = f"sendmail ended with {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = f"sendmail: {type(error).__name__}"
        try:
            with smtplib.SMTP("localhost", self._port, timeout=TIMEOUT) as mailer:
                mailer.send_message(message)
            return True
        except (OSError, smtplib.SMTPException) as error:
            _complain(f"no mail to {to}: {problem}, and the mailer's port: {type(error).__name__}")
        return False

    def tell(self, owner: str, subject: str, text: str) -> bool:
        """Tell an owner by mail and webhook; return whether either took it."""
        told = False
        name = self.unix_name(owner)
        if name and self._place.mail_domain:
            told = self.mail(f"{name}@{self._place.mail_domain}", f"labrack: {subject}", text)
        return self.post({"text": f"{owner}: {text}", "owner": owner, "subject": subject}) or told

    def post(self, document: Mapping[str, Any]) -> bool:
        """Send a document to the webhook, where there is one; its address is a secret and in no message."""
        if not self._place.webhook_file:
            return False
        try:
            address = Path(self._place.webhook_file).read_text(encoding="utf-8").strip()
            if not re.match(r"https?://", address):
                raise ValueError("no http or https address")
            request = urllib.request.Request(  # noqa: S310
                address, json.dumps(document).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                return bool(200 <= answer.status < 300)
        except urllib.error.HTTPError as error:
            _complain(f"the webhook was not told: it answers {error.code}")
        except (OSError, ValueError) as error:
            _complain(f"the webhook was not told: {type(error).__name__}")
        return False


def _complain(words: str) -> None:
    print(f"labrack: {words}", file=sys.stderr)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file whole, by rename, so that no reader meets half of it."""
    handle, draft = tempfile.mkstemp(prefix=".labrack-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(draft, mode)
        os.rename(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


# --- a run -----------------------------------------------------------------------------------------------------------


def read_memory(path: Path) -> Memory:
    """Return what is remembered; nothing for no file. A damaged one is put aside: nobody is ended by half a memory."""
    try:
        return Memory.read(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Memory()
    except (OSError, ValueError) as error:
        _complain(f"{path} is put aside: {error}")
        with contextlib.suppress(OSError):
            path.rename(path.with_suffix(".damaged"))
        return Memory()


def save(path: Path, memory: Memory) -> None:
    """Write what is to be remembered."""
    write(path, json.dumps(memory.document(), indent=1) + "\n")


def observe(server: Server, field_: Field, now: float) -> tuple[Observed, list[str]]:
    """Return what is there, and words about what could not be told."""
    words = []
    clusters: tuple[Cluster, ...] | None = None
    hashes: frozenset[str] = frozenset()
    parts: list[Part] = []
    try:
        # the parts come first: what is launched between the two is then known, and not unknown
        parts, silent = field_.parts()
        words += silent
        clusters = tuple(cluster_of(one) for one in server.clusters())
        hashes = frozenset(server.hashes())
    except Exception as error:
        words.append(f"the server does not tell: {type(error).__name__}: {_first(error)}")
        return Observed(now, None, tuple(parts), complete=False), words
    return Observed(now, clusters, tuple(parts), field_.busy(parts), hashes, not silent), words


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def apply(
    actions: Sequence[Action],
    memory: Memory,
    observed: Observed,
    server: Server,
    field_: Field,
    voice: Voice,
    settings: Settings,
) -> Memory:
    """Do what was decided, and return the memory of it; what fails is tried again by the next run."""
    now = observed.now
    for action in actions:
        finding = action.finding
        if settings.dry_run or action.kind == "report":
            continue
        if action.kind == "warn":
            after = reaping.delivered(memory, action, now)
            shown = voice.show(reaping.messages(after, now, settings))
            if voice.tell(finding.owner, f"{finding.name} is {finding.reason}", action.text) or finding.owner in shown:
                memory = after
            continue
        problem = ""
        parts = reaping.parts_of(finding, observed)
        if finding.verb != "autostop" and reaping.work(parts, field_.busy(parts), settings) is not False:
            # its owner has come back in this very minute
            continue
        try:
            _end(finding.verb, finding.target, server, field_, settings)
        except Exception as error:
            problem = f"{type(error).__name__}: {_first(error)}"
            _complain(f"{finding.name} could not be ended: {problem}")
        memory = reaping.ended(memory, action, now, problem)
        if not problem:
            voice.tell(finding.owner, f"{finding.name} was ended", f"{action.text}: {finding.what}")
    if not settings.dry_run:
        voice.show(reaping.messages(memory, now, settings))
    return memory


def _end(verb: str, target: tuple[str, ...], server: Server, field_: Field, settings: Settings) -> None:
    if verb == "autostop":
        server.autostop(target[0], settings.idle_minutes)
    elif verb == "down":
        server.down(target[0])
    elif verb == "delete_pod":
        field_.delete_pod(*target)
    elif verb == "scancel":
        field_.scancel(*target)
    else:
        raise ReaperError(f"nothing ends by {verb!r}")


def report(
    actions: Sequence[Action], memory: Memory, observed: Observed, place: Place, voice: Voice, settings: Settings
) -> Memory:
    """Write and send the weekly report where one is due, and return the memory of it."""
    if memory.reported and observed.now - memory.reported < WEEK:
        return memory
    if memory.reported:
        document = reaping.report(memory, actions, observed, settings)
        day = time.strftime("%Y-%m-%d", time.gmtime(observed.now))
        text = reaping.report_text(document, day)
        folder = Path(place.reports)
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        write(folder / f"{day}.md", text, 0o644)
        write(folder / f"{day}.json", json.dumps(document, indent=1) + "\n", 0o644)
        if place.report_mail:
            voice.mail(place.report_mail, f"labrack: GPUs that nobody uses, {day}", text)
        voice.post({"text": text, "report": document})
    # the first week begins now
    return replace(memory, reported=observed.now)


@contextlib.contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold the reaper's lock; ReaperError where another run has it."""
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ReaperError("another run of the reaper is under way") from None
        yield


def once(settings: Settings, place: Place, server: Server, field_: Field, now: float) -> tuple[list[str], int]:
    """Make one run; return what it did in words, and the exit status."""
    state = Path(place.state)
    voice = Voice(place)
    with alone(state):
        memory = read_memory(state)
        observed, words = observe(server, field_, now)
        if observed.clusters is None:
            # nothing is decided in the dark, and the time that passed there does not count
            write(
                state,
                json.dumps(Memory(now, memory.watches, memory.history, memory.reported).document(), indent=1) + "\n",
            )
            return words, 1
        actions, memory = reaping.plan(observed, memory, settings)
        # what an end needs to be tried again is there before anything ends
        save(state, memory)
        memory = apply(actions, memory, observed, server, field_, voice, settings)
        memory = report(actions, memory, observed, place, voice, settings)
        save(state, memory)
    return [*words, *(f"{one.kind} {one.finding.owner}: {one.text}" for one in actions)], 1 if words else 0


def main(arguments: Sequence[str]) -> int:
    """Make one run by the settings of a file; return the exit status."""
    parser = argparse.ArgumentParser(prog="labrack-skypilot-reaper", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--settings", default=SETTINGS, help="the settings, a JSON document")
    parser.add_argument("--dry-run", action="store_true", help="warn nobody and end nothing, whatever the settings say")
    options = parser.parse_args(arguments)
    try:
        settings, place = load(options.settings)
        if options.dry_run:
            settings = replace(settings, dry_run=True)
        words, rc = once(settings, place, Sdk(place), Field(place), time.time())
    except (ReaperError, OSError) as error:
        _complain(str(error))
        return 1
    for line in words:
        print(line)
    return rc


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
