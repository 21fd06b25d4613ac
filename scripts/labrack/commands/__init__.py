# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands, one file for each or for a group: arguments and messages. What they do is imported when they run."""
