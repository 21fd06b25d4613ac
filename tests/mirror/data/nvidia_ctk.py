#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for nvidia-ctk: ``config``, ``cdi generate|list``, ``system create-device-nodes``; the rest is refused.

Made after NVIDIA/nvidia-container-toolkit:cmd/nvidia-ctk (v1.20.0).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

OWN = "@VERSION@"
CONFIG = "/etc/nvidia-container-runtime/config.toml"
SPEC_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
#: What ``config`` writes where there is no file; a commented line is a key at its default.
DEFAULT = """\
#accept-nvidia-visible-devices-as-volume-mounts = false
#accept-nvidia-visible-devices-envvar-when-unprivileged = true
disable-require = false
supported-driver-capabilities = "compat32,compute,display,graphics,ngx,utility,video"
#swarm-resource = "DOCKER_RESOURCE_GPU"

[nvidia-container-cli]
#debug = "/var/log/nvidia-container-toolkit.log"
environment = []
#ldcache = "/etc/ld.so.cache"
ldconfig = "@/sbin/ldconfig"
load-kmods = true
#no-cgroups = false
#path = "/usr/bin/nvidia-container-cli"
#root = "/run/nvidia/driver"
#user = "root:video"

[nvidia-container-runtime]
#debug = "/var/log/nvidia-container-runtime.log"
log-level = "info"
mode = "auto"
runtimes = ["runc", "crun"]

[nvidia-container-runtime.modes]

[nvidia-container-runtime.modes.cdi]
annotation-prefixes = ["cdi.k8s.io/"]
default-kind = "nvidia.com/gpu"
spec-dirs = ["/etc/cdi", "/var/run/cdi"]

[nvidia-container-runtime.modes.csv]
mount-spec-path = "/etc/nvidia-container-runtime/host-files-for-container.d"

[nvidia-container-runtime.modes.legacy]
cuda-compat-mode = "ldconfig"

[nvidia-container-runtime-hook]
path = "nvidia-container-runtime-hook"
skip-mode-detection = false

[nvidia-ctk]
path = "nvidia-ctk"
"""
LINE = re.compile(r"^(#?)([a-z-]+) = (.*)$")


def fail(text):
    """End with the real one's form of an error."""
    print(f"ERRO[0000] {text}", file=sys.stderr)
    sys.exit(1)


def keys(text):
    """Map each full key of a configuration to its line's number and value."""
    section, found = "", {}
    for number, line in enumerate(text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif match := LINE.match(line):
            found[section + match[2]] = (number, match[3])
    return found


def assign(text, setting):
    """The configuration with one key set as ``--set`` asks; the other lines stay as they are."""
    key, separator, value = setting.partition("=")
    if key not in keys(DEFAULT):
        fail(f'invalid --set option {setting}: invalid config option: undefined field: "{key.rpartition(".")[2]}"')
    default = keys(DEFAULT)[key][1]
    if default in ("true", "false"):
        value = value if separator else "true"
        if value not in ("true", "false"):
            fail(
                f'invalid --set option {setting}: invalid format: strconv.ParseBool: parsing "{value}": invalid syntax'
            )
        written = value
    elif not separator:
        fail(f"invalid --set option {setting}: invalid format: expected key=value; got {setting}")
    elif default.startswith("["):
        written = json.dumps(re.split("[:,]", value))
    else:
        written = json.dumps(value)
    section, _, name = key.rpartition(".")
    lines, line = text.splitlines(), f"{name} = {written}"
    if key in keys(text):
        lines[keys(text)[key][0]] = line
    elif section:
        lines.insert(lines.index(f"[{section}]") + 1, line)
    else:
        lines.insert(0, line)
    return "\n".join(lines) + "\n"


def config(options):
    """``nvidia-ctk config``."""
    path = Path(options.config_file)
    text = path.read_text(encoding="utf-8") if path.exists() else DEFAULT
    for setting in options.set:
        text = assign(text, setting)
    if options.in_place:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def spec():
    """A CDI specification of the cards that nvidia-smi lists."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    cards = re.findall(r"^GPU (\d+): .*\(UUID: (GPU-[^)]+)\)", listed.stdout, re.MULTILINE)
    if listed.returncode != 0:
        fail(
            "failed to generate CDI spec: failed to create device CDI specs: "
            "failed to initialize NVML: Driver Not Loaded"
        )
    version = Path("/run/labrack-testnode/proc/driver/nvidia/version").read_text(encoding="utf-8")
    version = re.search(r"\d{3,}\.\d+(\.\d+)?", version)[0]
    lines = ["---", "cdiVersion: 0.5.0", "containerEdits:", "  deviceNodes:", "  - path: /dev/nvidiactl", "  env:"]
    lines += ["  - NVIDIA_VISIBLE_DEVICES=void", "  mounts:"]
    for library in sorted(Path("/usr/lib").glob(f"*-linux-gnu/lib*.so.{version}")):
        lines += [f"  - containerPath: {library}", f"    hostPath: {library}"]
    lines.append("devices:")
    for names, minors in [
        *(((index, uuid), (index,)) for index, uuid in cards),
        (("all",), [card[0] for card in cards]),
    ]:
        for name in names:
            lines += ["- containerEdits:", "    deviceNodes:"]
            lines += [f"    - path: /dev/nvidia{minor}" for minor in minors]
            lines.append(f'  name: "{name}"')
    return "\n".join([*lines, "kind: nvidia.com/gpu", ""])


def generate(options):
    """``nvidia-ctk cdi generate``."""
    text = spec()
    if not options.output:
        sys.stdout.write(text)
        return
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print("INFO[0000] Generated CDI spec with version 0.5.0", file=sys.stderr)


def listing(_):
    """``nvidia-ctk cdi list``: a device that two files name is listed once, as a conflict hides it from both."""
    found = []
    for folder in SPEC_DIRECTORIES:
        for path in sorted(Path(folder).glob("*.yaml")):
            found += re.findall(r'^  name: "(.+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for name in found if found.count(name) == 1]
    print(f"INFO[0000] Found {len(names)} CDI devices", file=sys.stderr)
    for name in names:
        print(f"nvidia.com/gpu={name}")


def device_nodes(options):
    """``nvidia-ctk system create-device-nodes``."""
    if options.load_kernel_modules:
        done = subprocess.run(["modprobe", "nvidia"], capture_output=True, text=True)
        if done.returncode != 0:
            fail(f"failed to load NVIDIA kernel modules: failed to load module nvidia: {done.stderr.strip()}")
    if options.control_devices and not Path("/dev/nvidiactl").exists():
        fail("failed to create NVIDIA control device nodes: failed to determine major: invalid device node")


def main():
    """Parse the command line; what the stand-in doesn't know is refused with exit status 2."""
    parser = argparse.ArgumentParser(prog="nvidia-ctk", description="labrack's stand-in for nvidia-ctk")
    parser.add_argument("--version", action="version", version=f"NVIDIA Container Toolkit CLI version {OWN}")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--debug", action="store_true")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("config")
    command.add_argument("--config-file", "--config", "-c", default=CONFIG)
    command.add_argument("--set", action="append", default=[])
    command.add_argument("--in-place", "-i", action="store_true")
    command.set_defaults(run=config)
    cdi = commands.add_parser("cdi").add_subparsers(required=True)
    command = cdi.add_parser("generate")
    command.add_argument("--output", default=os.environ.get("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", ""))
    command.set_defaults(run=generate)
    cdi.add_parser("list").set_defaults(run=listing)
    command = commands.add_parser("system").add_subparsers(required=True).add_parser("create-device-nodes")
    command.add_argument("--control-devices", action="store_true")
    command.add_argument("--load-kernel-modules", action="store_true")
    command.set_defaults(run=device_nodes)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
