# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tailscale's API, as far as labrack needs it. Standard library only, no Ansible import.

Paths, headers and answers are those of https://tailscale.com/api and of ``tailscale/tailscale:publicapi``.
"""

from __future__ import annotations

import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

URL = "https://api.tailscale.com"
HUJSON = "application/hujson"
TIMEOUT = 30.0
#: The options of every module that asks the API.
OPTIONS: dict[str, Any] = {
    "tailnet": {"type": "str", "default": "-"},
    "api_url": {"type": "str", "default": URL},
    "api_key": {"type": "str", "no_log": True},
    "oauth_client_id": {"type": "str"},
    "oauth_client_secret": {"type": "str", "no_log": True},
}
#: Answers after which the same request may be made again, when it changes nothing.
PASSING = (500, 502, 503, 504)
ATTEMPTS = 4
#: The longest that one answer may make us wait, in seconds.
PATIENCE = 60.0


class ApiError(RuntimeError):
    """The API refused or did not answer; the message is for the reader and holds no secret."""

    def __init__(self, message: str, status: int = 0) -> None:
        """Keep the status, 0 where there was no answer."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """An answer that came: its status, its headers by lower-case name, its text."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def message(self) -> str:
        """Return what the API says is wrong, empty for nothing that can be read."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return self.text.strip()[:200]
        return str(found.get("message") or found.get("error") or "") if isinstance(found, dict) else ""


@dataclass(frozen=True)
class Login:
    """How to log in: an API key, or an OAuth client. Neither is ever shown."""

    api_key: str = ""
    client_id: str = ""
    client_secret: str = ""

    def __repr__(self) -> str:
        return "Login(not shown)"

    def problem(self) -> str:
        """Return what is wrong with it, empty for nothing."""
        if self.api_key and (self.client_id or self.client_secret):
            return "there is an API key and an OAuth client. Mend: keep one of them, the OAuth client if you can"
        if not self.api_key and not self.client_secret:
            return "there is neither an API key nor the secret of an OAuth client. Mend: set one, from a vault"
        if self.client_secret and not self.client_id:
            return "the OAuth client has a secret and no id. Mend: set tailnet_policy_oauth_client_id"
        for key in (self.api_key, self.client_secret):
            if key.startswith("tskey-auth-"):
                return "this is a key for machines to join with (tskey-auth-). Mend: make an OAuth client instead"
        if self.api_key.startswith("tskey-client-"):
            return "this is an OAuth client's secret (tskey-client-). Mend: set it and the client's id as such"
        return ""


class Api:
    """One tailnet behind the API. Every method raises :class:`ApiError`."""

    def __init__(
        self, url: str, tailnet: str, login: Login, sleep: Callable[[float], None] = time.sleep, scope: str = ""
    ) -> None:
        """Keep where and how; ``scope`` is named to the reader when a key lacks it. Nothing is asked yet."""
        wrong = login.problem() or _url_problem(url)
        if wrong:
            raise ApiError(wrong)
        self._url = url.rstrip("/")
        self._tailnet = tailnet
        self._login = login
        self._sleep = sleep
        self._scope = scope
        self._token = ""

    @classmethod
    def of(cls, params: Mapping[str, Any], scope: str = "") -> Api:
        """Return the tailnet that a module's :data:`OPTIONS` name."""
        keys = ("api_key", "oauth_client_id", "oauth_client_secret")
        login = Login(*(str(params.get(key) or "").strip() for key in keys))
        return cls(params["api_url"], params["tailnet"], login, scope=scope)

    def read_policy(self) -> tuple[str, str]:
        """Return the policy file as HuJSON and its ETag, with its quotes."""
        answer = self._ask("GET", self._of_tailnet("acl"), headers={"Accept": HUJSON})
        etag = answer.headers.get("etag", "")
        if not etag:
            raise ApiError("the API gave the policy no ETag, so a change in between could not be seen")
        return answer.text, etag

    def validate_policy(self, text: str) -> tuple[list[str], list[str]]:
        """Return what the server finds wrong in a policy, and what it warns of; the policy stays as it is."""
        headers = {"Content-Type": HUJSON, "Accept": "application/json"}
        answer = self._ask("POST", self._of_tailnet("acl/validate"), text, headers, changes=False)
        found = json.loads(answer.text or "{}")
        errors, warnings = [], []
        for entry in found.get("data") or ():
            of = f"{entry['user']}: " if entry.get("user") else ""
            errors += [of + error for error in entry.get("errors") or ()]
            warnings += [of + warning for warning in entry.get("warnings") or ()]
        if found.get("message") and (errors or not warnings):
            errors.insert(0, found["message"])
        return errors, warnings

    def write_policy(self, text: str, etag: str) -> None:
        """Replace the policy file if it is still the one with this ETag; ApiError with status 412 when it is not."""
        headers = {"Content-Type": HUJSON, "Accept": HUJSON, "If-Match": etag}
        self._ask("POST", self._of_tailnet("acl"), text, headers)

    def devices(self) -> list[dict[str, Any]]:
        """Return the devices of the tailnet, with all fields."""
        answer = self._ask("GET", self._of_tailnet("devices") + "?fields=all")
        found: list[dict[str, Any]] = json.loads(answer.text)["devices"]
        return found

    def expire(self, device: str) -> None:
        """Let the key of the device with this id expire: it must log in again to come back."""
        self._ask("POST", f"/api/v2/device/{urllib.parse.quote(device, safe='')}/expire")

    def _of_tailnet(self, what: str) -> str:
        return f"/api/v2/tailnet/{urllib.parse.quote(self._tailnet, safe='-')}/{what}"

    def _ask(
        self,
        method: str,
        path: str,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        changes: bool | None = None,
    ) -> Answer:
        """Return a good answer; what ``changes`` something is not asked again after an error of the server."""
        changes = method != "GET" if changes is None else changes
        renewed = False
        for attempt in range(1, ATTEMPTS + 1):
            answer = self._send(method, path, body.encode(), {**(headers or {}), **self._authorization()})
            if answer.status == 401 and self._login.client_secret and not renewed:
                self._token, renewed = "", True
                continue
            wait = _wait(answer, attempt, changes)
            if wait is None or attempt == ATTEMPTS:
                break
            self._sleep(wait)
        if answer.status >= 300:
            raise ApiError(self._said(answer), answer.status)
        return answer

    def _authorization(self) -> dict[str, str]:
        if self._login.api_key:
            return {"Authorization": f"Bearer {self._login.api_key}"}
        if not self._token:
            fields = {
                "grant_type": "client_credentials",
                "client_id": self._login.client_id,
                "client_secret": self._login.client_secret,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._send("POST", "/api/v2/oauth/token", urllib.parse.urlencode(fields).encode(), headers)
            if answer.status >= 300:
                said = f" ({answer.message})" if answer.message else ""
                mend = "Mend: make a new one, with the scopes that the documentation names"
                raise ApiError(f"the OAuth client is not accepted{said}: revoked, or mistyped. {mend}", answer.status)
            self._token = str(json.loads(answer.text)["access_token"])
        return {"Authorization": f"Bearer {self._token}"}

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        data = body if body or method == "POST" else None
        request = urllib.request.Request(self._url + path, data, method=method)  # noqa: S310
        for name, value in headers.items():
            # a redirect to elsewhere must not carry the key along
            request.add_unredirected_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
                return Answer(answer.status, _lower(answer.headers), answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, _lower(error.headers), error.read().decode(errors="replace"))
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ApiError(f"{self._url} does not answer: {reason}") from None

    def _said(self, answer: Answer) -> str:
        said = f" ({answer.message})" if answer.message else ""
        scope = f" It needs the scope {self._scope}." if self._scope else ""
        return {
            401: f"the API does not accept the key{said}: expired, revoked or mistyped. Mend: make a new one",
            403: f"the key may not do this{said}.{scope} Mend: give the OAuth client that scope",
            404: f"the API knows no such tailnet or device, or not with this key{said}. Mend: look at the tailnet's "
            f"name ({self._tailnet}); '-' is the key's own",
            412: f"somebody changed the policy in between{said}; nothing was overwritten. Mend: run again",
            429: f"the API asks to slow down{said}. Mend: run again later",
        }.get(answer.status, f"the API answers {answer.status}{said}")


def _url_problem(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        near = ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    if parts.scheme == "https" or (parts.scheme == "http" and near):
        return ""
    return f"{url}: the key would travel unencrypted. Mend: write https://"


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _wait(answer: Answer, attempt: int, changes: bool) -> float | None:
    """Return how many seconds to wait before the same request, None for no other attempt."""
    if answer.status == 429:
        try:
            return min(float(answer.headers.get("retry-after", "")), PATIENCE)
        except ValueError:
            return float(2**attempt)
    return float(2 ** (attempt - 1)) if answer.status in PASSING and not changes else None
