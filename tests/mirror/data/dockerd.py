#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for dockerd: reads its configuration and fails on it as the real one does, and answers on its socket.

It answers ``/_ping``, ``/version``, ``/info`` and ``/containers/json``. A file in /run/labrack-testnode/containers is
a running container, its content the image; the files go when the daemon ends without live-restore. SIGHUP reads the
configuration again: only what the real one takes over then changes; a broken file leaves everything as it was.

Texts: moby/moby:daemon/config/config.go.
"""

import argparse
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import sys
import threading
from pathlib import Path

OWN = "@VERSION@"
CONTAINERS = Path("/run/labrack-testnode/containers")
#: https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
KNOWN = """
    allow-direct-routing allow-nondistributable-artifacts api-cors-header authorization-plugins bip bip6 bridge
    bridge-accept-fwmark builder cdi-spec-dirs cgroup-parent containerd containerd-namespace
    containerd-plugins-namespace data-root debug default-address-pools default-cgroupns-mode default-gateway
    default-gateway-v6 default-ipc-mode default-network-opts default-runtime default-shm-size default-ulimits
    dns dns-opts dns-search exec-opts exec-root
    experimental features firewall-backend fixed-cidr fixed-cidr-v6 group host-gateway-ip host-gateway-ips hosts
    http-proxy https-proxy icc init init-path insecure-registries ip ip-forward ip-forward-no-drop ip-masq ip6tables
    iptables ipv6 labels live-restore log-driver log-format log-level log-opts max-concurrent-downloads
    max-concurrent-uploads max-download-attempts metrics-addr min-api-version mtu network-control-plane-mtu
    no-new-privileges no-proxy node-generic-resources pidfile proxies raw-logs registry-mirrors runtimes
    seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opts swarm-default-advertise-addr tls
    tlscacert tlscert tlskey tlsverify userland-proxy userland-proxy-path userns-remap
""".split()  # noqa: SIM905
#: https://docs.docker.com/reference/cli/dockerd/#configuration-reload-behavior
RELOADED = """
    debug labels live-restore max-concurrent-downloads max-concurrent-uploads max-download-attempts default-runtime
    runtimes authorization-plugins insecure-registries registry-mirrors shutdown-timeout features
""".split()  # noqa: SIM905


class Refused(Exception):
    """The configuration can't be used."""


def read(path, flags):
    """The configuration of a file; an absent file is an empty one. Raises :class:`Refused`."""

    def refuse(text):
        raise Refused(f"unable to configure the Docker daemon with file {path}: {text}")

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    if not text.strip():
        return {}
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()):
            refuse("unexpected end of JSON input")
        refuse(f"invalid character '{text[error.pos]}' looking for beginning of value")
    if not isinstance(config, dict):
        refuse("json: cannot unmarshal array into Go value of type map[string]interface {}")
    unknown = [key for key in config if key not in KNOWN]
    if unknown:
        refuse("the following directives don't match any configuration option: " + ", ".join(unknown))
    twice = [f"{key}: (from flag: {flags[key]}, from file: {config[key]})" for key in flags if key in config]
    if twice:
        refuse(
            "the following directives are specified both as a flag and in the configuration file: " + ", ".join(twice)
        )
    return config


def check(config):
    """Refuse a default runtime that isn't there."""
    name = config.get("default-runtime", "runc")
    if name not in ("runc", "io.containerd.runc.v2", *config.get("runtimes", {})):
        raise Refused(f"specified default runtime does not exist: {name}")


class Daemon:
    """The running daemon."""

    def __init__(self, config, path, flags):
        self.config, self.path, self.flags = config, path, flags

    def reload(self, *_):
        """Take over what a SIGHUP changes."""
        try:
            new = read(self.path, self.flags)
            check({**self.config, **new})
        except Refused as refused:
            print(f'level=error msg="{refused}"', file=sys.stderr, flush=True)
            return
        for key in RELOADED:
            if key in new:
                self.config[key] = new[key]
            elif key in ("live-restore", "debug", "runtimes", "default-runtime", "features"):
                self.config.pop(key, None)
        print('level=info msg="Reloaded configuration"', file=sys.stderr, flush=True)

    def end(self):
        """Stop the containers, unless live-restore keeps them."""
        if not self.config.get("live-restore"):
            shutil.rmtree(CONTAINERS, ignore_errors=True)

    def containers(self):
        """The pretended containers as ``/containers/json`` lists them."""
        paths = sorted(CONTAINERS.glob("*")) if CONTAINERS.is_dir() else []
        return [
            {"Id": path.name, "Names": [f"/{path.name}"], "Image": path.read_text().strip(), "State": "running"}
            for path in paths
        ]

    def info(self):
        """What ``/info`` says."""
        options = dict(option.partition("=")[::2] for option in self.config.get("exec-opts", []))
        running = len(self.containers())
        unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
        return {
            "Containers": running,
            "ContainersRunning": running,
            "ServerVersion": OWN,
            "LiveRestoreEnabled": bool(self.config.get("live-restore")),
            "Runtimes": {
                "io.containerd.runc.v2": {"path": "runc"},
                "runc": {"path": "runc"},
                **self.config.get("runtimes", {}),
            },
            "DefaultRuntime": self.config.get("default-runtime", "runc"),
            "CgroupDriver": options.get("native.cgroupdriver", "systemd" if unified else "cgroupfs"),
            "CgroupVersion": "2" if unified else "1",
            "LoggingDriver": self.config.get("log-driver", "json-file"),
            "DockerRootDir": self.config.get("data-root", "/var/lib/docker"),
            "CDISpecDirs": self.config.get("cdi-spec-dirs", ["/etc/cdi", "/var/run/cdi"]),
        }


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """HTTP on a Unix socket that systemd may have opened."""

    daemon_threads = True


def handler(daemon):
    """The request handler for a daemon."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def address_string(self):
            return "local"

        def log_message(self, *_):
            """Say nothing: the real one doesn't log requests either."""

        def do_GET(self):
            path = self.path.partition("?")[0]
            path = "/" + path.split("/", 2)[2] if path.startswith("/v1.") else path
            answers = {
                "/_ping": lambda: "OK",
                "/version": lambda: {"Version": OWN, "ApiVersion": "1.52", "Os": "linux"},
                "/info": daemon.info,
                "/containers/json": daemon.containers,
            }
            known = path in answers
            answer = answers[path]() if known else {"message": f"the stand-in knows no {path}"}
            body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(200 if known else 501)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

    return Handler


def listen(daemon):
    """The server on systemd's socket, or on /run/docker.sock."""
    server = Server("/run/docker.sock", handler(daemon), bind_and_activate=False)
    if os.environ.get("LISTEN_FDS") == "1":
        server.socket = socket.socket(fileno=3)
    else:
        Path("/run/docker.sock").unlink(missing_ok=True)
        server.server_bind()
        os.chmod("/run/docker.sock", 0o660)
        shutil.chown("/run/docker.sock", group="docker")
        server.server_activate()
    return server


def notify():
    """Tell systemd that the daemon is up."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def main():
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(prog="dockerd")
    parser.add_argument("--version", action="version", version=f"Docker version {OWN}, build labrack")
    parser.add_argument("-H", "--host", action="append", default=[])
    parser.add_argument("--containerd")
    parser.add_argument("--config-file", type=Path, default=Path("/etc/docker/daemon.json"))
    parser.add_argument("--validate", action="store_true")
    options = parser.parse_args()
    flags = {"hosts": options.host} if options.host else {}
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    try:
        config = read(options.config_file, flags)
        if options.validate:
            print("configuration OK")
            return
        check(config)
    except Refused as refused:
        sys.exit(str(refused))
    Path("/etc/docker").mkdir(exist_ok=True)
    Path("/var/lib/docker").mkdir(exist_ok=True)
    daemon = Daemon(config, options.config_file, flags)
    server = listen(daemon)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    notify()
    while signal.sigwait([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]) == signal.SIGHUP:
        daemon.reload()
    daemon.end()


if __name__ == "__main__":
    main()
