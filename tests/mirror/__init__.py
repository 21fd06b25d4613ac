# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A mirror of NVIDIA's and Docker's repositories for the tests: the upstream's layout, test keys, stand-in packages.

- :mod:`.catalogue` says what is in it: paths, versions, package names and how they depend on each other;
- :mod:`.build` makes the signed tree in a container and keeps it under .cache/mirror;
- :mod:`.tailnet` makes another tree, with Tailscale's repository and headscale's release, their programs real;
- :mod:`.k3s` makes one with k3s' releases, their program a stand-in;
- :mod:`.serve` starts it in a lab's network as ``http://mirror``, and breaks it (:class:`.serve.Fault`).
"""
