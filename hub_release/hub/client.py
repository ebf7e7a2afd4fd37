"""The connection to the Hub: every request has a timeout and a limited number of tries; errors name the remedy."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import hf_request_event_hook, parse_ratelimit_headers
from tenacity import RetryCallState, Retrying, retry_if_exception_type, retry_if_result, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from hub_release.package import ReleaseError
from modeling.infer.stops import describe_local_error

TRIES = 5
LONGEST_WAIT = 60
"""Seconds. If the Hub asks for a longer wait (Retry-After has no upper bound), the push ends with an error."""
TIMEOUT = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
"""Seconds of silence. An upload may take any time as long as bytes flow."""
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class HubError(ReleaseError):
    """The Hub or the network failed, or the Hub refused; the message names the remedy."""


def connect() -> HfApi:
    """The Hub client for ``HF_ENDPOINT``, with the token from the Hub's own sources; it retries, but not endlessly.

    Raises:
        ReleaseError: ``HF_ENDPOINT`` is not an address.
    """
    api = HfApi()
    if not re.fullmatch(r"https?://[\w.:\[\]-]+(?:/\S*)?", api.endpoint):
        raise ReleaseError(
            f"HF_ENDPOINT is {re.sub('.*@', '…@', api.endpoint)!r}, not an address. Remedy: unset it, or set one "
            "without a password, such as https://huggingface.co"
        )
    for logger in (logging.getLogger("huggingface_hub"), logging.getLogger("httpx2")):
        for place in (logger, *logger.handlers):  # a logger's filter does not see the records of its children
            place.addFilter(_redact_record)
    set_client_factory(
        lambda: _Client(event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True, timeout=None)
    )
    return api


def redact(text: str) -> str:
    """Remove the token, and the password and the query of every address: signed addresses have their secret there."""
    if token := get_token():
        text = text.replace(token, "…")
    text = re.sub(r"://[^\s/?#@:]*:\S*@", "://…@", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1?…", text)


def _redact_record(record: logging.LogRecord) -> bool:
    """A log filter: the client logs every request that it repeats, with its full address."""
    record.msg, record.args = redact(record.getMessage()), None
    return True


class _Client(httpx2.Client):
    """Gives every request a timeout, and several tries if it may be repeated.

    Where the client retries by itself, Retry-After has no bound. Elsewhere it does not retry, and sets no timeout or a
    timeout of None (observed with huggingface_hub 2.4.0).
    """

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request; a commit is tried once, because it may have landed even if its answer is lost.

        Raises:
            HubError: no try got an answer, or the Hub asks to wait too long.
        """
        asked = request.extensions.get("timeout", {})
        limits = {name: TIMEOUT[name] if asked.get(name) is None else asked[name] for name in TIMEOUT}
        request.extensions = {**request.extensions, "timeout": limits}
        # A file's stream cannot be rewound from here; the client itself repeats such uploads.
        if not isinstance(request.stream, httpx2.ByteStream) or "/commit/" in request.url.path:
            return self._send_once(request, **options)
        tries = Retrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_before_next_try,
            retry=retry_if_exception_type(httpx2.TransportError)
            | retry_if_result(lambda response: response.status_code in TRANSIENT),
            retry_error_callback=_give_up,
        )
        return tries(self._send_once, request, **options)

    def _send_once(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        response = super().send(request, **options)
        wait = _asked_wait(response)
        if wait > LONGEST_WAIT:
            response.close()
            raise HubError(
                f"{_name(request)}: the Hub answered {response.status_code} and asks to wait {wait} seconds. Remedy: "
                "run again after that time; files that were uploaded are not uploaded again"
            )
        return response


def wait_before_next_try(state: RetryCallState) -> float:
    """Seconds to wait: what the Hub asks for, else one second at first and twice as long each time."""
    outcome = state.outcome
    assert outcome is not None
    if outcome.failed:
        response = getattr(outcome.exception(), "response", None)
    else:
        response = outcome.result()
        response.close()
    asked = 0 if response is None else _asked_wait(response)
    return asked or wait_exponential_jitter(initial=1, max=20)(state)


def _asked_wait(response: httpx2.Response) -> int:
    if response.status_code not in TRANSIENT:
        return 0
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    # Retry-After may also be a date, but the Hub does not use that: our own waiting times are good enough then.
    asked = response.headers.get("Retry-After", "").strip()
    return int(asked) if asked.isdecimal() else 0


def _give_up(state: RetryCallState) -> httpx2.Response:
    name, outcome = _name(state.args[0]), state.outcome
    assert outcome is not None
    if outcome.failed:
        raise HubError(f"{name}, tried {TRIES} times: {_network(outcome.exception())}") from outcome.exception()
    raise HubError(
        f"{name}, tried {TRIES} times: the Hub answers {outcome.result().status_code}. Remedy: look at "
        "https://status.huggingface.co and run again later"
    )


def _name(request: httpx2.Request) -> str:
    # Without the query: signed upload addresses have their secret there.
    return f"{request.method} {request.url.host}{request.url.path}"


def _network(error: BaseException | None) -> str:
    what = "no answer in time" if isinstance(error, httpx2.TimeoutException) else "the connection failed"
    return f"{what} ({type(error).__name__}). Remedy: check the network, a proxy and HF_ENDPOINT, and run again"


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the Hub client's errors, which have several unrelated types, into a :class:`HubError`."""
    try:
        yield
    except ReleaseError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError) as error:
        chain: list[BaseException] = [error]
        while chain[-1].__cause__ is not None:  # a RuntimeError hides the error of an upload
            chain.append(chain[-1].__cause__)
        for cause in chain:
            if isinstance(cause, HubError):
                raise cause from error
            if isinstance(cause, HfHubHTTPError):
                raise HubError(describe_refusal(cause)) from error
            if isinstance(cause, httpx2.HTTPError):
                raise HubError(_network(cause)) from error
        if isinstance(error, OfflineModeIsEnabled):
            raise HubError("HF_HUB_OFFLINE is set. Remedy: unset it to reach the Hub") from error
        if isinstance(error, (ConnectionError, TimeoutError)):  # from hf-xet, which has its own connections
            raise HubError(
                f"the upload failed ({redact(str(error))}). Remedy: check the network and run again; "
                "HF_HUB_DISABLE_XET=1 uploads without Xet"
            ) from error
        if isinstance(error, OSError) and error.errno:
            raise ReleaseError(describe_local_error(error)) from error
        if isinstance(error, HFValidationError):
            raise ReleaseError(f"{error} Remedy: name it as user/name") from error
        raise HubError(
            f"the Hub's answer cannot be used ({type(error).__name__}: {redact(str(error))}). Remedy: check that "
            "HF_ENDPOINT is a Hub and that no proxy answers for it, and run again"
        ) from error


def describe_refusal(error: HfHubHTTPError) -> str:
    """What a refused request means, with the Hub's own message and the remedy."""
    status = error.response.status_code
    said = f" ({redact(error.server_message)})" if error.server_message else ""
    if isinstance(error, GatedRepoError):
        return f"the repository is gated{said}. Remedy: ask for access on its page"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no such revision{said}. Remedy: check --revision"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the repository does not exist, or this token may not see it{said}. Remedy: check the id, and the token "
            "with hf auth whoami"
        )
    if status == 401:
        return f"the Hub does not accept the token{said}. Remedy: run hf auth login, or set a valid token in HF_TOKEN"
    if status in (402, 413, 507) or (status == 403 and "storage" in said.lower()):
        return f"the account's quota is used up{said}. Remedy: free storage or change the plan, and run again"
    if status == 403:
        return (
            f"the token may not do this{said}. Remedy: use a token with write access to this namespace "
            "(https://huggingface.co/settings/tokens), or give --create-pr to propose the change"
        )
    if status == 404:
        return f"the Hub does not know {error.response.url.path}{said}. Remedy: check the id and HF_ENDPOINT"
    if status in TRANSIENT:
        return f"the Hub answered {status}{said}. Remedy: run again later"
    return f"the Hub refused with {status}{said}. Remedy: fix what it names and run again"
