# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a lab adds to its SkyPilot server: limits for every launch, and an end for what was forgotten."""
