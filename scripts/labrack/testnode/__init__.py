# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Test nodes: containers and virtual machines with systemd, sshd and stand-in GPUs, reached by ssh like any machine.

``make demo``, molecule and pytest all make their nodes here:

- :mod:`.engine` finds a Docker engine, or installs and starts the distribution's;
- :mod:`.image` builds the node's image from a registry's base image, or from the distribution's mirror;
- :mod:`.node` starts a lab of nodes, hands out its inventory, and takes it away;
- :mod:`.vm` does the same with virtual machines, on the disks of :mod:`.disk` and with the emulator of :mod:`.qemu`;
- :mod:`.gpus` describes the stand-in GPUs, and breaks and mends them.
"""
