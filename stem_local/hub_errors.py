"""What the Hub's library raises, turned into sentences that say what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from huggingface_hub import constants, errors

from .errors import AccessError, DiskSpaceError, NotFoundError, OfflineError, SourceError

_TRANSPORTS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
"""Packages whose exceptions mean that the network failed; which one depends on the version."""


@contextlib.contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Raise SourceError, its kinds, or DiskSpaceError in place of what the block's calls raise."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise AccessError(
            f"{repo} is shown only to those who accepted its licence: accept it at "
            f"{constants.ENDPOINT}/{repo} , then log in with: hf auth login "
            "(or set HF_TOKEN), and pull again."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"The Hub has no model {repo}, or it is private: check the spelling, or log in with: "
            "hf auth login (or set HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFoundError(
            f"{repo} has no revision {revision!r}: give a branch, a tag or a commit after '@'."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise offline_error(repo) from error
    except errors.HFValidationError as error:
        raise NotFoundError(f"{repo!r} is not a name the Hub can have: {_first(error)}") from error
    except errors.EntryNotFoundError as error:
        raise NotFoundError(f"{repo} lost a file while it was downloaded; pull again.") from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskSpaceError(
                f"The disk filled up while downloading {repo}; free some space and pull again, "
                "which goes on where this stopped."
            ) from error
        if _is_network(error):
            raise OfflineError(
                f"The Hub could not be reached ({_first(error)}); check the connection or proxy "
                "and pull again, which goes on where this stopped."
            ) from error
        raise


def _is_network(error: Exception) -> bool:
    """Connection trouble, a transfer cut short, or an answer that no Hub gives (a login page)."""
    cut_short = isinstance(error, OSError) and error.errno is None
    nonsense = isinstance(error, (ValueError, KeyError, TypeError, AttributeError))
    transport = type(error).__module__.partition(".")[0] in _TRANSPORTS
    return cut_short or nonsense or transport or isinstance(error, (ConnectionError, TimeoutError))


def offline_error(what: str) -> OfflineError:
    return OfflineError(
        f"HF_HUB_OFFLINE is set and {what} is not in the Hub cache: unset it to download, or give "
        "the path of a .gguf file or safetensors folder."
    )


def _refused(repo: str, error: errors.HfHubHTTPError) -> SourceError:
    status = error.response.status_code
    if status in (401, 403):
        return AccessError(
            f"The Hub refused access to {repo} ({status}): log in with: hf auth login, or check "
            "that HF_TOKEN is valid and may read it."
        )
    if status == 429 or status >= 500:
        return OfflineError(f"The Hub is not serving {repo} now ({status}); try again later.")
    return SourceError(f"The Hub refused {repo} ({status}): {_first(error)}")


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
