# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the stand-in for k3s does: ``k3s.py VERSION server|agent|kubectl|etcd-snapshot …``.

A server has real certificates (openssl), tokens, a kubeconfig, SQLite in WAL mode, and an API by https that keeps
whatever objects it is given; it applies the manifests in its directory, in the YAML that the role writes. Agents join
with a token that names the server's authority. There is no kubelet and no container: a sleeping process stands for a
pod, and a node has as many GPUs as nvidia-smi lists once there are a device plugin, its label, and a runtime that was
found at the start. Paths and refusals are k3s' own, looked up in k3s-io/k3s and docs.k3s.io.
"""

import argparse
import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

ETC, DATA = Path("/etc/rancher/k3s"), Path("/var/lib/rancher/k3s")
KUBECONFIG = ETC / "k3s.yaml"
SERVER, AGENT = DATA / "server", DATA / "agent"
TLS, MANIFESTS, PASSWORD = SERVER / "tls", SERVER / "manifests", Path("/etc/rancher/node/password")
TOOLKIT = "/usr/local/nvidia/toolkit:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
PACKAGED = ("coredns", "local-storage", "metrics-server", "servicelb", "traefik", "runtimes", "ccm", "rolebindings")
BOTH = (
    *("node-name", "node-ip", "flannel-iface", "node-label", "node-taint", "token-file", "token", "default-runtime"),
    *("kubelet-arg", "data-dir"),
)
SERVER_ONLY = (
    *("agent-token-file", "tls-san", "write-kubeconfig-mode", "secrets-encryption", "disable", "cluster-init"),
    *("cluster-cidr", "service-cidr", "cluster-dns", "cluster-domain", "flannel-backend", "kube-apiserver-arg"),
)
KNOWN = {
    "server": {*BOTH, *SERVER_ONLY},
    "agent": {*BOTH, "server"},
}
PORT = 6443


def say(text):
    """A line for the journal."""
    print(f'time="{time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}" {text}', file=sys.stderr, flush=True)


def fatal(text):
    """End as k3s does."""
    say(f'level=fatal msg="{text}"')
    sys.exit(1)


# --- files -----------------------------------------------------------------------------------------------------------


def read_config(kind):
    """config.yaml, a key a line with JSON or a word; a key that k3s does not know ends it."""
    found = {}
    path = ETC / "config.yaml"
    for line in path.read_text().splitlines() if path.exists() else ():
        if not line.strip() or line.startswith("#"):
            continue
        key, _colon, value = line.partition(": ")
        if key not in KNOWN[kind]:
            fatal(f"flag provided but not defined: -{key}")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def read_yaml(text):
    """The documents of a stream of mappings and lists with JSON scalars, as the role writes them."""
    documents = []
    for part in re.split(r"^---\n", text, flags=re.MULTILINE):
        lines = [line for line in part.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if lines:
            documents.append(_block(lines, 0)[0])
    return documents


def _block(lines, indent):
    """What stands at the front of lines at an indent, and how many lines that is."""
    found = [] if lines[0].lstrip().startswith("- ") else {}
    at = 0
    while at < len(lines):
        line = lines[at]
        depth = len(line) - len(line.lstrip())
        if depth < indent:
            break
        if isinstance(found, list):
            if not line.lstrip().startswith("- "):
                break
            rest = line.lstrip()[2:]
            if re.match(r"[\w./-]+:( |$)", rest):
                inner = [" " * (indent + 2) + rest]
                at += 1
                while at < len(lines) and len(lines[at]) - len(lines[at].lstrip()) >= indent + 2:
                    inner.append(lines[at])
                    at += 1
                found.append(_block(inner, indent + 2)[0])
            else:
                found.append(json.loads(rest))
                at += 1
            continue
        key, _colon, value = line.strip().partition(":")
        at += 1
        if value.strip():
            found[key] = json.loads(value)
        else:
            deeper = len(lines[at]) - len(lines[at].lstrip())
            found[key], count = _block(lines[at:], deeper)
            at += count
    return found, at


def write(path, text, mode=0o600):
    """A file whole, with its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.chmod(mode)
    draft.rename(path)


def find_runtimes(config):
    """Write containerd's configuration with the runtimes that are there now, and return them."""
    names = ["runc"]
    if shutil.which("nvidia-container-runtime", path=TOOLKIT):
        names.append("nvidia")
    default = config.get("default-runtime", "runc")
    if default not in names:
        fatal(f"default runtime {default} was not found")
    head = "# File generated by k3s. DO NOT EDIT. Use config-v3.toml.tmpl instead.\nversion = 3\n"
    table = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes"
    body = "".join(f"\n[{table}.'{name}']\n  runtime_type = \"io.containerd.runc.v2\"\n" for name in names)
    write(AGENT / "etc/containerd/config.toml", head + body)
    return names


def check_kubelet():
    """Refuse a kubelet's drop-in that its version does not know."""
    for path in sorted((AGENT / "etc/kubelet.conf.d").glob("*.conf")):
        if "kind: KubeletConfiguration" not in path.read_text():
            fatal(f"failed to load kubelet config file {path}")


# --- certificates ----------------------------------------------------------------------------------------------------


def openssl(*argv):
    """Run openssl; its words where it fails."""
    done = subprocess.run(["openssl", *argv], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {argv[0]}: {done.stderr}")


def make_authority(name):
    """A certificate authority, once."""
    if not (TLS / f"{name}.crt").exists():
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(TLS / f"{name}.key")]
        subject = f"/CN=k3s-{name}@{int(time.time())}"
        usage = ["-addext", "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign"]
        openssl("req", "-x509", *key, *usage, "-days", "3650", "-subj", subject, "-out", str(TLS / f"{name}.crt"))


def make_certificate(name, authority, subject, extension):
    """A certificate of an authority, anew."""
    key, request, extensions = TLS / f"{name}.key", TLS / f"{name}.csr", TLS / f"{name}.ext"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key)]
    openssl("req", "-new", *curve, "-subj", subject, "-out", str(request))
    # without these, Python from 3.13 on trusts none
    own = "basicConstraints=critical,CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    extensions.write_text(f"{own}{extension}\n")
    sign = ["-CA", str(TLS / f"{authority}.crt"), "-CAkey", str(TLS / f"{authority}.key"), "-CAcreateserial"]
    more = ["-days", "365", "-extfile", str(extensions), "-out", str(TLS / f"{name}.crt")]
    openssl("x509", "-req", "-in", str(request), *sign, *more)


def authority_sum():
    """What a token names the authority by."""
    return hashlib.sha256((TLS / "server-ca.crt").read_bytes()).hexdigest()


def write_kubeconfig(mode):
    """The kubeconfig, with a new client certificate."""
    make_certificate("client-admin", "client-ca", "/O=system:masters/CN=system:admin", "extendedKeyUsage=clientAuth")

    def data(name):
        return base64.b64encode((TLS / name).read_bytes()).decode()

    text = f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {data("server-ca.crt")}
    server: https://127.0.0.1:{PORT}
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: {data("client-admin.crt")}
    client-key-data: {data("client-admin.key")}
"""
    write(KUBECONFIG, text, int(str(mode), 8))


# --- the server's objects --------------------------------------------------------------------------------------------


class Store:
    """Objects by their path in the API, in SQLite as k3s has them, or beside it where etcd is wanted."""

    def __init__(self, etcd):
        folder = SERVER / "db"
        path = folder / "etcd/standin.db" if etcd or (folder / "etcd").exists() else folder / "state.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.base.execute("PRAGMA journal_mode=WAL")
        self.base.execute("CREATE TABLE IF NOT EXISTS kine (name TEXT PRIMARY KEY, value TEXT, revision INTEGER)")

    def get(self, name):
        with self.lock:
            row = self.base.execute("SELECT value FROM kine WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, name, value):
        with self.lock:
            (revision,) = self.base.execute("SELECT coalesce(max(revision), 0) + 1 FROM kine").fetchone()
            meta = value.setdefault("metadata", {})
            old = self.get(name) or {}
            meta.setdefault("uid", old.get("metadata", {}).get("uid", secrets.token_hex(16)))
            meta.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            meta["resourceVersion"] = str(revision)
            row = (name, json.dumps(value), revision)
            self.base.execute("INSERT OR REPLACE INTO kine VALUES (?, ?, ?)", row)
        return value

    def remove(self, name):
        with self.lock:
            self.base.execute("DELETE FROM kine WHERE name = ? OR name LIKE ?", (name, f"{name}/%"))

    def below(self, prefix):
        with self.lock:
            rows = self.base.execute("SELECT name, value FROM kine ORDER BY name").fetchall()
        return [(name, json.loads(value)) for name, value in rows if name.startswith(prefix)]


PLURALS = {"ResourceQuota": "resourcequotas", "StorageClass": "storageclasses", "RuntimeClass": "runtimeclasses"}
GLOBAL = ("Namespace", "Node", "StorageClass", "RuntimeClass", "ClusterRole", "ClusterRoleBinding", "PersistentVolume")


def object_path(one):
    """Where the API has an object."""
    version, kind, meta = one["apiVersion"], one["kind"], one["metadata"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    place = "" if kind in GLOBAL else f"/namespaces/{meta.get('namespace', 'default')}"
    return f"{root}{place}/{PLURALS.get(kind, kind.lower() + 's')}/{meta['name']}"


class Cluster:
    """The server's state, and what keeps it going."""

    def __init__(self, version, config):
        self.version, self.config = version, config
        self.store = Store(config.get("cluster-init"))
        self.agent_secret = Path(config["agent-token-file"]).read_text().strip() if "agent-token-file" in config else ""
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            self.have({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for name in ("nvidia", "nvidia-cdi", "nvidia-experimental", "crun"):
            runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}}
            self.have({**runtime, "handler": name})
        self.have(
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {
                    "name": "local-path",
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
                },
                "provisioner": "rancher.io/local-path",
            }
        )
        for name in PACKAGED:
            path = MANIFESTS / f"{name}.yaml"
            if name in config.get("disable", []):
                path.unlink(missing_ok=True)
            elif not path.exists():
                write(path, "# packaged with k3s\n")

    def have(self, one):
        path = object_path(one)
        if self.store.get(path) is None:
            self.store.put(path, one)

    def register(self, node):
        """Take a node in, or its news; None, or why not."""
        name, password = node["name"], node["password"]
        known = self.store.get(f"/passwords/{name}")
        if known and known["password"] != password:
            rest = f"contents of '{PASSWORD}' may not match server node-passwd entry"
            return f"Node password rejected, duplicate hostname or {rest}"
        if not known:
            self.store.put(f"/passwords/{name}", {"password": password})
        count = self.gpus(node)
        amounts = {"cpu": str(os.cpu_count()), "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"}
        amounts.update({"nvidia.com/gpu": str(count)} if count else {})
        labels = dict(label.split("=", 1) for label in node["labels"])
        labels.update({"kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"})
        kinds = {"nodeInfo": {"kubeletVersion": node["version"], **dict.fromkeys(NODE_INFO, "standin")}}
        path = f"/api/v1/nodes/{name}"
        old = self.store.get(path) or {}
        made = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {**old.get("metadata", {}).get("labels", {}), **labels}},
            "spec": {},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": node["address"]},
                    {"type": "Hostname", "address": name},
                ],
                "allocatable": amounts,
                "capacity": amounts,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
                **kinds,
            },
        }
        self.store.put(path, made)
        return None

    def gpus(self, node):
        """How many GPUs a node has to give."""
        plugin = self.store.get("/apis/apps/v1/namespaces/kube-system/daemonsets/nvidia-device-plugin-daemonset")
        if not plugin or "nvidia" not in node["runtimes"] or "nvidia.com/gpu.present=true" not in node["labels"]:
            return 0
        told = plugin["spec"]["template"]["metadata"]["annotations"]["labrack/config"]
        slices = json.loads(told).get("sharing", {}).get("timeSlicing", {}).get("resources", [{"replicas": 1}])
        return node["cards"] * slices[0]["replicas"]

    def deploy(self):
        """Apply the manifests that changed; what a file no longer has goes, what a file had that is gone stays."""
        for path in sorted(MANIFESTS.glob("*.yaml")):
            try:
                text = path.read_text()
            except FileNotFoundError:
                continue
            addon = f"/addons/{path.stem}"
            digest = hashlib.sha256(text.encode()).hexdigest()
            before = self.store.get(addon) or {"sum": "", "objects": []}
            if before["sum"] == digest or "_" in path.stem:
                continue
            try:
                objects = read_yaml(text)
            except (ValueError, IndexError) as error:
                say(f'level=error msg="Failed to process config: {path}: {error}"')
                continue
            paths = [object_path(one) for one in objects]
            for one in objects:
                self.store.put(object_path(one), one)
            for gone in set(before["objects"]) - set(paths):
                self.store.remove(gone)
            self.store.put(addon, {"sum": digest, "objects": paths})


NODE_INFO = (
    *("architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion", "machineID"),
    *("operatingSystem", "osImage", "systemUUID"),
)


class Handler(http.server.BaseHTTPRequestHandler):
    """The API, and the few paths by which agents join."""

    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, *_):
        pass

    def answer(self, code, value, kind="application/json"):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def status(self, code, reason, text):
        told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": text}
        self.answer(code, {**told, "code": code})

    def serve(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null") if length else None
        url = urllib.parse.urlsplit(self.path)
        path = url.path.rstrip("/")
        self.selector = dict(urllib.parse.parse_qsl(url.query)).get("labelSelector", "")
        try:
            if path in ("/cacerts", "/ping"):
                text = (TLS / "server-ca.crt").read_bytes() if path == "/cacerts" else b"pong"
                return self.answer(200, text, "text/plain")
            if path == "/v1-k3s/standin-node":
                return self.join(body)
            if not self.connection.getpeercert():
                return self.status(401, "Unauthorized", "Unauthorized")
            return self.api(self.command, path, body)
        except (BrokenPipeError, ConnectionResetError):
            return None

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def join(self, node):
        told = self.headers.get("Authorization", "").removeprefix("Basic ")
        user, _colon, secret = base64.b64decode(told).decode().partition(":")
        if user != "node" or not secrets.compare_digest(secret, self.cluster.agent_secret):
            return self.status(401, "Unauthorized", "Unauthorized")
        refused = self.cluster.register(node)
        return self.status(403, "Forbidden", refused) if refused else self.answer(200, {})

    def api(self, verb, path, body):
        store = self.cluster.store
        if path in ("/readyz", "/livez", "/healthz"):
            return self.answer(200, b"ok", "text/plain")
        if path == "/version":
            major, minor = re.match(r"v(\d+)\.(\d+)", self.cluster.version).groups()
            return self.answer(
                200, {"major": major, "minor": minor, "gitVersion": self.cluster.version, "platform": "linux"}
            )
        parts = path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[0] not in ("api", "apis") or not rest:
            return self.status(404, "NotFound", "the server could not find the requested resource")
        named = len(rest) in (2, 4) if rest[0] == "namespaces" else len(rest) == 2
        if verb == "GET" and named:
            one = store.get(path)
            return self.answer(200, one) if one else self.missing(rest)
        if verb == "GET":
            version = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
            found = [one for one in self.listed(path, rest) if selected(one, self.selector)]
            return self.answer(200, {"kind": "List", "apiVersion": version, "metadata": {}, "items": found})
        if verb == "POST":
            body.setdefault("metadata", {}).setdefault("namespace", rest[1]) if len(rest) > 2 else None
            target = f"{path}/{body['metadata']['name']}"
            if store.get(target):
                return self.status(409, "AlreadyExists", f'"{body["metadata"]["name"]}" already exists')
            return self.answer(201, store.put(target, body))
        old = store.get(path)
        if old is None:
            return self.missing(rest)
        if verb == "DELETE":
            store.remove(path)
            if rest[0] == "nodes":
                store.remove(f"/passwords/{rest[1]}")
            return self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        return self.answer(200, store.put(path, merge(old, body) if verb == "PATCH" else body))

    def listed(self, path, rest):
        if rest[0] == "namespaces" or len(rest) > 1:
            depth = path.count("/") + 1
            return [one for name, one in self.cluster.store.below(f"{path}/") if name.count("/") == depth]
        # all namespaces', or what is in none
        root = path[: -len(rest[0])]
        found = self.cluster.store.below(root)
        return [one for name, one in found if name.rpartition("/")[0].endswith(f"/{rest[0]}")]

    def missing(self, rest):
        return self.status(404, "NotFound", f'{rest[-2] if len(rest) > 1 else rest[0]} "{rest[-1]}" not found')


def selected(one, selector):
    """Whether an object has the labels of a selector of equalities and names, ``a=b,c``."""
    labels = one["metadata"].get("labels") or {}
    words = [word.replace("==", "=").partition("=") for word in selector.split(",") if word]
    return all(name in labels and (not sign or labels[name] == value) for name, sign, value in words)


class Web(http.server.ThreadingHTTPServer):
    """One that says in a line who did not trust it."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        say(f'level=info msg="http: TLS handshake error from {client_address[0]}: {sys.exc_info()[1]}"')


def merge(old, new):
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    found = {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
    return {key: value for key, value in found.items() if value is not None}


# --- server and agent ------------------------------------------------------------------------------------------------


def this_node(version, config, runtimes):
    """What a node tells of itself."""
    if not PASSWORD.exists():
        write(PASSWORD, secrets.token_hex(16) + "\n")
    smi = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True) if shutil.which("nvidia-smi") else None
    return {
        "name": config.get("node-name", socket.gethostname()),
        "password": PASSWORD.read_text().strip(),
        "address": config.get("node-ip", "127.0.0.1"),
        "labels": config.get("node-label", []),
        "version": version,
        "runtimes": runtimes,
        "cards": smi.stdout.count("UUID: GPU-") if smi else 0,
    }


def have_pod():
    """A pod's shim, which outlives this process, where none is."""
    shim = f"{os.environ['K3S_DATA_DIR']}/containerd-shim-runc-v2"
    for path in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            if "/containerd-shim" in os.readlink(path):
                return
    Path("/run/k3s/containerd").mkdir(parents=True, exist_ok=True)
    subprocess.Popen([shim, "-namespace", "k8s.io"], start_new_session=True, close_fds=True)


def ready():
    """Tell the parent."""
    with contextlib.suppress(OSError):
        os.write(3, b"1")
        os.close(3)


def server(version):
    config = read_config("server")
    say(f'level=info msg="Starting k3s {version} (5a1c0ffe)"')
    SERVER.mkdir(parents=True, exist_ok=True)
    SERVER.chmod(0o700)
    TLS.mkdir(mode=0o700, exist_ok=True)
    secret = Path(config["token-file"]).read_text().strip() if "token-file" in config else secrets.token_hex(16)
    known = SERVER / "cred-sum"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    if known.exists() and known.read_text() != digest:
        fatal("starting kubernetes: preparing server: bootstrap data already found and encrypted with different token")
    write(known, digest)
    for name in ("server-ca", "client-ca"):
        make_authority(name)
    check_kubelet()
    names = ["127.0.0.1", config.get("node-ip", "127.0.0.1"), "kubernetes", "localhost", *config.get("tls-san", [])]
    kinds = [f"{'IP' if re.fullmatch(r'[0-9.]+', name) else 'DNS'}:{name}" for name in dict.fromkeys(names)]
    make_certificate("serving", "server-ca", "/CN=k3s", f"subjectAltName={','.join(kinds)}")
    write(SERVER / "token", f"K10{authority_sum()}::server:{secret}\n")
    cluster = Cluster(version, config)
    if cluster.agent_secret:
        write(SERVER / "agent-token", f"K10{authority_sum()}::node:{cluster.agent_secret}\n")
    runtimes = find_runtimes(config)
    (AGENT / "images").mkdir(parents=True, exist_ok=True)
    for path in sorted((AGENT / "images").glob("*.tar*")):
        say(f'level=info msg="Importing images from {path}"')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "serving.crt", TLS / "serving.key")
    context.load_verify_locations(TLS / "client-ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    Handler.cluster = cluster
    try:
        web = Web(("", PORT), Handler)
    except OSError as error:
        fatal(f"Failed to start networking: listen tcp :{PORT}: bind: {error.strerror}")
    web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    write_kubeconfig(config.get("write-kubeconfig-mode", "0600"))
    cluster.deploy()
    refused = cluster.register(this_node(version, config, runtimes))
    if refused:
        fatal(refused)
    write(AGENT / "client-kubelet.crt", "standin\n")
    have_pod()
    ready()
    while True:
        time.sleep(1)
        cluster.deploy()
        cluster.register(this_node(version, config, runtimes))


def agent(version):
    config = read_config("agent")
    check_kubelet()
    runtimes = find_runtimes(config)
    there = False
    while True:
        try:
            join(config, this_node(version, config, runtimes))
            if not there:
                there = True
                write(AGENT / "client-kubelet.crt", "standin\n")
                have_pod()
                ready()
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            say(f'level=error msg="{error}"')
        time.sleep(2)


def join(config, node):
    """Hold the server to the authority that the token names, then tell it of this node."""
    token = Path(config["token-file"]).read_text().strip()
    found = re.fullmatch(r"K10([0-9a-f]{64})::node:(.+)", token)
    if not found:
        raise RuntimeError("failed to parse token: invalid token format")
    url = urllib.parse.urlsplit(config["server"])
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    way = http.client.HTTPSConnection(url.hostname, url.port, context=anyone, timeout=10)
    way.request("GET", "/cacerts")
    authority = way.getresponse().read()
    way.close()
    if hashlib.sha256(authority).hexdigest() != found[1]:
        raise RuntimeError("token CA hash does not match the Cluster CA certificate hash")
    context = ssl.create_default_context(cadata=authority.decode())
    way = http.client.HTTPSConnection(url.hostname, url.port, context=context, timeout=10)
    told = base64.b64encode(f"node:{found[2]}".encode()).decode()
    way.request("POST", "/v1-k3s/standin-node", json.dumps(node), {"Authorization": f"Basic {told}"})
    answer = way.getresponse()
    text = answer.read().decode()
    way.close()
    if answer.status != 200:
        raise RuntimeError(f"failed to get CA certs: {json.loads(text).get('message', answer.status)}")


# --- commands --------------------------------------------------------------------------------------------------------


def read_kubeconfig(path, context):
    """What a kubeconfig says of a context, of its cluster and user, in one mapping."""
    text = Path(path).read_text()
    if not text.lstrip().startswith("{"):
        if context not in ("", "default"):
            raise KeyError(f'context "{context}" does not exist')
        return dict(re.findall(r"^ *([\w-]+): (\S+)$", text, re.MULTILINE))
    tree = json.loads(text)
    named = {kind: {one["name"]: one for one in tree[kind]} for kind in ("contexts", "clusters", "users")}
    chosen = named["contexts"].get(context or tree["current-context"])
    if not chosen:
        raise KeyError(f'context "{context}" does not exist')
    found = chosen["context"]
    return {**named["clusters"][found["cluster"]]["cluster"], **named["users"][found["user"]]["user"]}


def ask(verb, path, config="", context=""):
    """Status and body of a request to the API, as the kubeconfig says."""
    values = read_kubeconfig(config or os.environ.get("KUBECONFIG") or KUBECONFIG, context)
    authority = base64.b64decode(values["certificate-authority-data"]).decode()
    trust = ssl.create_default_context(cadata=authority)
    with tempfile.NamedTemporaryFile("wb") as pair:
        for name in ("client-certificate-data", "client-key-data"):
            pair.write(base64.b64decode(values[name]))
        pair.flush()
        trust.load_cert_chain(pair.name)
    url = urllib.parse.urlsplit(values["server"])
    way = http.client.HTTPSConnection(url.hostname, url.port, context=trust, timeout=10)
    way.request(verb, path)
    answer = way.getresponse()
    return answer.status, answer.read().decode()


def kubectl(argv):
    """Those few commands that the roles, the reaper and the tests use."""
    reader = argparse.ArgumentParser("kubectl", add_help=False)
    for names in ("--kubeconfig", "--context", "--raw", "--filename", "-l --selector", "-n --namespace", "-o --output"):
        reader.add_argument(*names.split(), default="")
    reader.add_argument("-A", "--all-namespaces", action="store_true")
    reader.add_argument("words", nargs="*")
    # nothing here waits
    fine = [word for word in argv if not word.startswith(("--ignore-not-found", "--wait", "--request-timeout"))]
    told, _rest = reader.parse_known_intermixed_args(fine)
    words = told.words

    def say_back(verb, path, right=(200,)):
        code, text = ask(verb, path, told.kubeconfig, told.context)
        print(text, file=sys.stdout if code in right else sys.stderr)
        return 0 if code in right else 1

    try:
        if words == ["get"] and told.raw:
            return say_back("GET", told.raw)
        if words == ["config", "view"]:
            values = read_kubeconfig(told.kubeconfig or os.environ.get("KUBECONFIG") or KUBECONFIG, told.context)
            name = told.context or "default"
            clusters = [{"name": name, "cluster": {"server": values["server"]}}]
            contexts = [{"name": name, "context": {"cluster": name, "user": name}}]
            users = [{"name": name, "user": {"client-key-data": "DATA+OMITTED"}}]
            kind = {"apiVersion": "v1", "kind": "Config", "current-context": name}
            print(json.dumps({**kind, "clusters": clusters, "contexts": contexts, "users": users}))
            return 0
        if words[:1] == ["get"] and len(words) == 2 and told.output == "json":
            place = "" if told.all_namespaces or words[1] == "nodes" else f"/namespaces/{told.namespace or 'default'}"
            query = urllib.parse.urlencode({"labelSelector": told.selector} if told.selector else {})
            return say_back("GET", f"/api/v1{place}/{words[1]}?{query}")
        if words[:1] == ["exec"]:
            # no container: the pod's annotation has what the command prints there
            place = f"/api/v1/namespaces/{told.namespace or 'default'}/pods/{words[1]}"
            _code, text = ask("GET", place, told.kubeconfig, told.context)
            printed = json.loads(text)["metadata"].get("annotations", {}).get("standin/prints")
            print(text if printed is None else printed, file=sys.stderr if printed is None else sys.stdout)
            return int(printed is None)
        if words[:2] == ["delete", "node"]:
            return say_back("DELETE", f"/api/v1/nodes/{words[2]}", (200, 404))
        if words[:2] == ["delete", "pod"]:
            return say_back("DELETE", f"/api/v1/namespaces/{told.namespace or 'default'}/pods/{words[2]}", (200, 404))
        if words == ["delete"] and told.filename:
            return max(
                say_back("DELETE", object_path(one), (200, 404)) for one in read_yaml(Path(told.filename).read_text())
            )
    except (OSError, KeyError) as error:
        print(
            f"The connection to the server was refused - did you specify the right host or port? {error}",
            file=sys.stderr,
        )
        return 1
    print(f"kubectl: a stand-in, which does not know {' '.join(argv)}", file=sys.stderr)
    return 2


def etcd_snapshot(argv):
    """``etcd-snapshot save --name NAME --dir DIR`` of a server that runs with etcd."""
    source = SERVER / "db/etcd/standin.db"
    options = dict(zip(argv[1::2], argv[2::2], strict=True))
    with contextlib.suppress(OSError):
        if source.exists() and argv[:1] == ["save"] and ask("GET", "/readyz")[0] == 200:
            target = Path(options["--dir"]) / f"{options['--name']}-{socket.gethostname()}-{int(time.time())}"
            with sqlite3.connect(source) as base, sqlite3.connect(target) as copy:
                base.backup(copy)
            target.chmod(0o600)
            return 0
    print('level=fatal msg="Error: etcd datastore disabled"', file=sys.stderr)
    return 1


def main(version, kind="", *argv):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if kind == "server":
        server(version)
    elif kind == "agent":
        agent(version)
    elif kind == "kubectl":
        sys.exit(kubectl(list(argv)))
    elif kind == "etcd-snapshot":
        sys.exit(etcd_snapshot(list(argv)))
    print(f"k3s: a stand-in, which does not know {kind}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
