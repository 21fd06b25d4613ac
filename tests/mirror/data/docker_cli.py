#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for the docker command: ``info``, ``version`` and ``ps`` with simple formats; the rest is refused."""

import argparse
import http.client
import json
import re
import socket
import sys

OWN = "@VERSION@"
SOCKET = "/var/run/docker.sock"


def ask(path):
    """The daemon's answer; ends as the real command does where there is none."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(SOCKET)
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    except PermissionError:
        sys.exit(
            "permission denied while trying to connect to the Docker daemon socket at "
            f"unix://{SOCKET}: connect: permission denied"
        )
    except OSError:
        sys.exit(f"Cannot connect to the Docker daemon at unix://{SOCKET}. Is the docker daemon running?")


def render(template, data):
    """A template of ``{{.Key}}`` and ``{{json .Key}}``; anything else in braces is refused."""

    def fill(match):
        value = data
        for key in filter(None, match[2].split(".")):
            value = value[key]
        if match[1]:
            return json.dumps(value, separators=(",", ":"))
        return str(value).lower() if isinstance(value, bool) else str(value)

    text = re.sub(r"{{\s*(json )?\.([\w.]*)\s*}}", fill, template)
    if "{{" in text:
        sys.exit(f"docker: the stand-in knows no template {template}")
    return text


def main():
    """Parse the command line; what the stand-in doesn't know is refused with exit status 2."""
    parser = argparse.ArgumentParser(prog="docker", description="labrack's stand-in for docker")
    parser.add_argument("--version", action="version", version=f"Docker version {OWN}, build labrack")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("info", "version", "ps"):
        command = commands.add_parser(name)
        command.add_argument("--format", "-f", default="")
        if name == "ps":
            command.add_argument("--quiet", "-q", action="store_true")
            command.add_argument("--no-trunc", action="store_true")
    options = parser.parse_args()
    if options.command == "ps":
        for container in ask("/containers/json"):
            shown = container["Id"] if options.no_trunc else container["Id"][:12]
            names = {"ID": shown, "Names": container["Names"][0][1:], "Image": container["Image"]}
            print(shown if options.quiet else render(options.format or "{{.ID}}   {{.Image}}   {{.Names}}", names))
    elif options.command == "info":
        print(render(options.format or "{{json .}}", ask("/info")))
    else:
        versions = {"Client": {"Version": OWN}, "Server": ask("/version")}
        print(render(options.format or "{{json .}}", versions))


if __name__ == "__main__":
    main()
