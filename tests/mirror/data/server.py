#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs in the mirror's container: serves tree/ on port 80, with the faults of control.json.

control.json maps a path's prefix to ``{"fault": NAME, "seconds": NUMBER}``; the longest prefix that fits a path counts.
It is read at each request, so a fault is there at once; "refused" closes the port.
"""

import functools
import http.server
import json
import posixpath
import select
import sys
import time
import urllib.parse
from pathlib import Path

PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Page not found</h1></body></html>\n"


def faults(root):
    """The faults that are set."""
    try:
        return json.loads((root / "control.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the tree, and what a fault makes of them."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, root, **rest):
        self.root = root
        super().__init__(*args, directory=str(root / "tree"), **rest)

    def do_GET(self):
        # A flat repository's index names its files with a leading "./".
        path = posixpath.normpath(urllib.parse.unquote(self.path.partition("?")[0]))
        table = faults(self.root)
        prefix = max((prefix for prefix in table if f"{path}/".startswith(prefix)), key=len, default=None)
        fault = table[prefix] if prefix is not None else {"fault": ""}
        if fault["fault"] == "slow":
            time.sleep(fault["seconds"])
        elif fault["fault"] == "html-page":
            return self.answer(PAGE, "text/html; charset=utf-8")
        elif fault["fault"] == "wrong-checksum" and path.endswith(".deb"):
            content = (self.root / "tree" / path.lstrip("/")).read_bytes()
            return self.answer(content[:-1] + bytes([content[-1] ^ 1]), "application/vnd.debian.binary-package")
        alternate = self.root / "alternates" / (fault["fault"] or "none") / path.lstrip("/")
        if alternate.is_file():
            return self.answer(alternate.read_bytes(), "application/octet-stream")
        return super().do_GET()

    def answer(self, content, kind):
        """Send a whole file with status 200."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main(root):
    """Serve until the container ends; while the port is to refuse, it isn't open."""
    server = None
    while True:
        refuse = any(fault["fault"] == "refused" for fault in faults(root).values())
        if refuse and server:
            server.server_close()
            server = None
        elif not refuse and not server:
            http.server.ThreadingHTTPServer.allow_reuse_address = True
            server = http.server.ThreadingHTTPServer(("", 80), functools.partial(Handler, root=root))
        if server and select.select([server], [], [], 0.1)[0]:
            server.handle_request()
        elif not server:
            time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
