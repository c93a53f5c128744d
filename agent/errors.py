"""The errors of the agent: what can go wrong, in our words.

Vendor exceptions never pass the door of their vendor (``store`` for MongoDB, ``cluster`` for Kubernetes): they are
translated there, with the vendor's exception as the cause. Every message says what was wrong, where, and where it
helps, what would be right. None carries a secret.
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of everything that the agent raises on purpose."""


class ConfigurationError(AgentError):
    """The configuration cannot be used; ``problems`` lists all that is wrong, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UsageError(AgentError):
    """The caller asked for something that does not exist or cannot be done: an unknown job, a malformed id."""


class NotFoundError(UsageError):
    """The named job, run, plan or document does not exist."""


class QuantityError(UsageError, ValueError):
    """A value is no Kubernetes quantity, or no amount in its unit; the message names the value."""


class DependencyError(AgentError):
    """Something that the agent needs could not be used; ``dependency`` names it (``mongodb``, ``volume``, ...)."""

    dependency = "dependency"


class StoreError(DependencyError):
    """MongoDB answered with an error."""

    dependency = "mongodb"


class StoreUnavailableError(StoreError):
    """MongoDB could not be reached, or did not answer in time; trying again may help."""


class StoreSlowError(StoreUnavailableError):
    """The server itself ended an operation that took too long; asking for less may help."""


class StoreDeniedError(StoreError):
    """MongoDB refused the credentials, or they lack a privilege."""


class DuplicateError(StoreError):
    """A unique index already holds this key."""


class ConflictError(StoreError):
    """Somebody else changed the same documents at the same time; the transaction was aborted, nothing was written."""


class TooLargeError(StoreError):
    """A document would be larger than MongoDB stores (16 MiB)."""


class VolumeError(DependencyError):
    """A directory could not be looked at (EIO, ESTALE, no answer in time): neither present nor absent."""

    dependency = "volume"


class ClusterError(DependencyError):
    """A Kubernetes cluster could not be used."""

    dependency = "kubernetes"


class ClusterUnavailableError(ClusterError):
    """The cluster could not be reached, or said that it cannot answer now (429, 5xx); trying again may help."""


class ClusterTimeoutError(ClusterUnavailableError):
    """The cluster did not answer in time."""


class ClusterUntrustedError(ClusterError):
    """The cluster's certificate is not one that its kubeconfig trusts: nothing was sent to it."""


class ClusterDeniedError(ClusterError):
    """The cluster refused the credentials (401): they are wrong, withdrawn or expired."""


class ClusterForbiddenError(ClusterDeniedError):
    """The credentials are right, but may not do this (403): ``verb`` and ``resource`` name the missing RBAC rule."""

    def __init__(self, message: str, *, verb: str, resource: str) -> None:
        super().__init__(message)
        self.verb = verb
        self.resource = resource


class ClusterMissingError(ClusterError):
    """The cluster does not serve what was asked for (404): a custom resource that is not installed, say."""


class ClusterExpiredError(ClusterError):
    """The list changed too much since its first page (410): it has to be read again from the start."""


class ClusterAnswerError(ClusterError):
    """The cluster answered with something that is not Kubernetes' answer to the question, or is too large."""


class CredentialsError(ClusterError):
    """A provider's kubeconfig is not used; ``problems`` lists all that is wrong, one line each, without a secret."""

    def __init__(self, provider: str, problems: list[str]) -> None:
        whose = f" of {shown(provider)}" if provider else ""
        super().__init__(f"the kubeconfig{whose} is refused: " + "; ".join(problems))
        self.provider = provider
        self.problems = problems


class LedgerError(AgentError):
    """The ledger says no, and changed nothing; ``provider_id`` is the provider that was asked."""

    def __init__(self, provider_id: object, message: str) -> None:
        super().__init__(message)
        self.provider_id = provider_id


class ProviderNotFoundError(LedgerError, NotFoundError):
    """There is no provider of this id."""


class ProviderInactiveError(LedgerError):
    """The provider's status is none in which capacity is granted; ``status`` is what it is."""

    def __init__(self, provider_id: object, message: str, *, status: object) -> None:
        super().__init__(provider_id, message)
        self.status = status


class MalformedProviderError(LedgerError):
    """The provider's document breaks the ledger's contract; ``field`` is the path of what is wrong in it."""

    def __init__(self, provider_id: object, message: str, *, field: str) -> None:
        super().__init__(provider_id, message)
        self.field = field


class InsufficientCapacityError(LedgerError):
    """The provider has less left than was asked for, in whole millicores or bytes.

    ``resource`` is the first that is short, with its ``capacity``, what is ``allocated`` of it, what is ``free``, and
    how much more was ``asked``; ``resources`` names all that are short.
    """

    def __init__(
        self,
        provider_id: object,
        message: str,
        *,
        resources: tuple[str, ...],
        capacity: int,
        allocated: int,
        asked: int,
    ) -> None:
        super().__init__(provider_id, message)
        self.resources = resources
        self.resource = resources[0]
        self.capacity = capacity
        self.allocated = allocated
        self.free = capacity - allocated
        self.asked = asked


class VersionConflictError(LedgerError):
    """The provider is not at the version that the caller expected: somebody changed it in between."""

    def __init__(self, provider_id: object, message: str, *, expected: int, found: int) -> None:
        super().__init__(provider_id, message)
        self.expected = expected
        self.found = found


class BookingExistsError(LedgerError):
    """The key is booked already, with other amounts; ``booked`` are they. To change them is ``resize``."""

    def __init__(self, provider_id: object, message: str, *, key: object, booked: dict[str, int]) -> None:
        super().__init__(provider_id, message)
        self.key = key
        self.booked = booked


class BookingNotFoundError(LedgerError, NotFoundError):
    """Nothing is booked under the key, so nothing can be resized."""

    def __init__(self, provider_id: object, message: str, *, key: object) -> None:
        super().__init__(provider_id, message)
        self.key = key


class BookingKeyError(UsageError, ValueError):
    """A value cannot be the key of a booking; the message says what can."""


class RequestError(UsageError, ValueError):
    """A request is none that can be booked: an unknown resource, a float, a negative or too large amount."""


class BusyError(AgentError):
    """The job is already running, here or in another replica."""


class SlotTakenError(AgentError):
    """The scheduled run of this instant belongs to another replica."""


class LeaseLostError(AgentError):
    """The lease ran out or another replica took it: this process may not change anything more for the job."""


class RefusedError(AgentError):
    """A guard said no before the first change. ``guard`` is its name, the message what it saw and what would help.

    ``consent`` is what an operator can accept so that the guard lets a run pass; nothing where no consent helps.
    """

    def __init__(self, guard: str, message: str, *, consent: str | None = None) -> None:
        super().__init__(message)
        self.guard = guard
        self.consent = consent


class InterruptedRunError(AgentError):
    """The run was asked to stop (shutdown, cancellation) between two batches."""


def shown(value: object, limit: int = 80) -> str:
    """How a message shows a value that somebody else chose: quoted, on one line, cut after ``limit`` characters.

    Of anything but text and plain numbers only the type is named, since what it holds may be large or secret.
    """
    if isinstance(value, str):
        return repr(value[:limit]) + ("..." if len(value) > limit else "")
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and value.bit_length() <= limit):
        return repr(value)
    return f"a value of type {type(value).__name__}"
