# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The texts around the SkyPilot server: its unit, the guard of its ports, and nginx in front. Pure."""

from __future__ import annotations

from ansible_collections.labrack.infra.plugins.module_utils.systemd import sandbox

HEADER = "# Written by labrack.\n"
ETC = "/etc/labrack/skypilot"
HOME = "/var/lib/skypilot"
CURRENT = "/opt/skypilot/current"
GUARD = f"{ETC}/guard.nft"
GUARD_UNIT = "/etc/systemd/system/labrack-skypilot-guard.service"
SERVER_UNIT = "/etc/systemd/system/skypilot.service"
NGINX = f"{ETC}/nginx.conf"
PROXY_UNIT = "/etc/systemd/system/skypilot-proxy.service"
TABLE = "labrack_skypilot"

#: The server takes these for the machine's size, by which it counts its workers: one launch and one short request run
#: in processes that stay, and whatever is more in ones that come and go (sky/server/config.py, compute_server_config).
ENVIRONMENT = {
    "HOME": HOME,
    # k3s' kubectl would ask its own file, which is root's
    "KUBECONFIG": f"{HOME}/.kube/config",
    "PATH": f"{CURRENT}/bin:/usr/local/bin:/usr/bin:/bin",
    "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    "SKYPILOT_POD_MEMORY_GB_LIMIT": "3",
    "SKYPILOT_POD_CPU_CORE_LIMIT": "1",
    # numpy, which each process loads, has a thread for each core; glibc has eight heaps for each
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "ENABLE_SERVICE_ACCOUNTS": "true",
    # it packs itself for the machines that jobs run on, and has what that needs: 0 is pip's word for no index
    "PIP_NO_BUILD_ISOLATION": "0",
}


def server_unit(memory_max: str) -> str:
    """Return the server's unit. It writes to its home alone, and runs behind the guard or not at all.

    It is started in SkyPilot's local mode: that one listens on loopback alone, and makes more workers when launches
    wait, where ``--deploy`` takes the machine for its own.
    """
    kept = sandbox(ReadWritePaths=HOME, RestrictAddressFamilies="AF_UNIX AF_INET AF_INET6 AF_NETLINK")
    environment = "".join(f"Environment={key}={value}\n" for key, value in ENVIRONMENT.items())
    return f"""{HEADER}[Unit]
Description=SkyPilot API server
Documentation=https://docs.skypilot.co
Wants=network-online.target
After=network-online.target labrack-skypilot-guard.service
Requires=labrack-skypilot-guard.service

[Service]
User=skypilot
Group=skypilot
{environment}WorkingDirectory={HOME}
ExecStart={CURRENT}/bin/sky api start --foreground --host 127.0.0.1 --enable-basic-auth
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=60
MemoryMax={memory_max}
TasksMax=4096
OOMPolicy=continue
UMask=0077
ProtectProc=invisible
{kept}
[Install]
WantedBy=multi-user.target
"""


def guard_text(port: int, queue: int, user: str, proxy: str) -> str:
    """Return the rules: who on this host may talk to the server's ports, and who may answer on them.

    The server takes what comes by loopback for its admin's, and its queue unpickles what it is sent. What leaves a
    closed port has no owner and passes; what a stranger's program answers there doesn't, so that nobody stands in for
    a server that is down.
    """
    return f"""{HEADER}table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    chain output {{
        type filter hook output priority -10; policy accept;
        tcp dport {port} meta skuid {{ root, {user}, {proxy} }} accept
        tcp dport {queue} meta skuid {{ root, {user} }} accept
        oifname "lo" tcp dport {{ {port}, {queue} }} reject with tcp reset
        oifname "lo" tcp sport {{ {port}, {queue} }} meta skuid != {{ root, {user} }} drop
    }}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname != "lo" tcp dport {{ {port}, {queue} }} drop
    }}
}}
"""


def guard_unit() -> str:
    """Return the guard's unit: rules that somebody flushes are back at once."""
    shown = f"nft list table inet {TABLE} >/dev/null 2>&1"
    return f"""{HEADER}[Unit]
Description=Keep SkyPilot's ports on loopback to the server and its proxy
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
After=local-fs.target nftables.service
Conflicts=shutdown.target
StartLimitIntervalSec=0

[Service]
ExecStartPre=/usr/sbin/nft -f {GUARD}
ExecStart=/bin/sh -c 'nft monitor tables | while read -r _; do {shown} || nft -f {GUARD}; done'
ExecReload=/usr/sbin/nft -f {GUARD}
ExecStopPost=-/usr/sbin/nft delete table inet {TABLE}
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
"""


def nginx_text(port: int, server: int) -> str:
    """Return nginx's configuration: TLS in front, no header by which a client names itself, uploads passed through."""
    return f"""{HEADER}pid /run/skypilot-proxy/nginx.pid;
error_log stderr warn;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    server_tokens off;
    client_body_temp_path /run/skypilot-proxy/body;
    proxy_temp_path /run/skypilot-proxy/proxy;
    fastcgi_temp_path /run/skypilot-proxy/fastcgi;
    uwsgi_temp_path /run/skypilot-proxy/uwsgi;
    scgi_temp_path /run/skypilot-proxy/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    server {{
        listen {port} ssl;
        listen [::]:{port} ssl;
        ssl_certificate {ETC}/server.crt;
        ssl_certificate_key {ETC}/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        client_max_body_size 0;
        large_client_header_buffers 8 64k;
        location / {{
            proxy_pass http://127.0.0.1:{server};
            proxy_http_version 1.1;
            proxy_connect_timeout 5s;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 1d;
            proxy_send_timeout 1d;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            # with these the server asks for a password; what the client says of itself is dropped
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto https;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header Forwarded "";
            proxy_set_header X-Auth-Request-Email "";
            proxy_set_header X-Auth-Request-User "";
            proxy_set_header X-Auth-Request-Groups "";
        }}
    }}
}}
"""


def proxy_unit() -> str:
    """Return the unit of an nginx of its own, whose user nobody else's pages share."""
    return f"""{HEADER}[Unit]
Description=TLS in front of the SkyPilot API server
Wants=network-online.target
After=network-online.target

[Service]
User=skypilot-proxy
Group=skypilot-proxy
RuntimeDirectory=skypilot-proxy
RuntimeDirectoryMode=0700
ExecStart=/usr/sbin/nginx -c {NGINX} -g "daemon off;"
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=2
UMask=0077
{sandbox()}
[Install]
WantedBy=multi-user.target
"""
