"""What a provider's cluster really has set aside: the requests of its pods and claims, and of custom resources.

Lists are read page by page and summed as they come; nothing is kept but the sums. A list that changed too much between
two pages (410) is read again from its start, so that nothing is counted twice or left out by the reading itself.
Sources: "Kubernetes API Concepts" (retrieving large result sets in chunks) of the Kubernetes documentation.

The rights that this needs: ``list`` on ``pods``, on ``persistentvolumeclaims``, and on each custom resource that is
configured; in the whole cluster, or in the namespaces that are named.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from agent.cluster import names
from agent.cluster.client import JsonObject, ProviderClient
from agent.cluster.names import LabelValue
from agent.errors import (
    ClusterAnswerError,
    ClusterExpiredError,
    ClusterUnavailableError,
    QuantityError,
    UsageError,
    shown,
)
from agent.quantity import NOTHING, Amounts, pod_amounts, to_bytes, to_millicores

# Objects. kubectl asks for 500; but a page is decoded in one go on the event loop, which takes 20 to 100 milliseconds
# for 500 pods of 5 KiB each.
PAGE: Final = 100
RESTARTS: Final = 3  # of one list; where pages expire faster than they are read, more would not help


@dataclass(frozen=True, slots=True)
class CustomResource:
    """A custom resource that says what it requests, such as KubeDB's ``Postgres``.

    The paths are dotted, with ``*`` for every item of a list (``spec.podTemplate.spec.containers.*.resources.requests
    .cpu``); what is found is added up, what is not there counts as nothing. The counts under ``replicas`` (paths too)
    are multiplied with it; one that is missing counts as 1. ``labels`` select the objects instead of the query's.

    Where the pods and claims of these objects are selected as well, their requests are counted twice: select either.
    """

    group: str
    version: str
    plural: str
    cpu: str | None = None
    memory: str | None = None
    storage: str | None = None
    replicas: tuple[str, ...] = ()
    labels: Mapping[str, LabelValue] | None = None

    def __post_init__(self) -> None:
        """Refuse at once what is no name or no path. Raises UsageError."""
        names.api_group(self.group)
        names.api_version(self.version)
        names.api_plural(self.plural)
        for path in (self.cpu, self.memory, self.storage, *self.replicas):
            if path is not None and not all(path.split(".")):
                raise UsageError(f"{shown(path)} is no dotted path")

    @property
    def resource(self) -> str:
        """The name as RBAC and ``kubectl`` know it: ``postgreses.kubedb.com``."""
        return f"{self.plural}.{self.group}"


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which objects count: those with all the labels, in the named namespaces or, if there are none, everywhere.

    No labels select everything. ``pods`` and ``claims`` can be left out where custom resources say it all. ``budget``
    is the time for everything together.
    """

    labels: Mapping[str, LabelValue] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    pods: bool = True
    claims: bool = True
    resources: tuple[CustomResource, ...] = ()
    budget: timedelta = timedelta(seconds=60)
    page: int = PAGE

    def __post_init__(self) -> None:
        """Refuse at once what is no label and no namespace. Raises UsageError."""
        names.label_selector(self.labels)
        for resource in self.resources:
            names.label_selector(resource.labels or {})
        for name in self.namespaces:
            names.namespace(name)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cluster has set aside, by source; the counts are of objects that were looked at, ended pods included."""

    by_pods: Amounts = NOTHING
    by_claims: Amounts = NOTHING
    by_resources: Amounts = NOTHING
    pods: int = 0
    claims: int = 0
    resources: int = 0

    @property
    def total(self) -> Amounts:
        """All sources together: millicores, bytes of memory, bytes of storage."""
        return self.by_pods + self.by_claims + self.by_resources


@dataclass(frozen=True, slots=True)
class _List:
    """A list to read, and what one of its objects amounts to."""

    path: str
    parameters: dict[str, str]
    resource: str
    selector: str
    amounts: Callable[[JsonObject], Amounts]


async def usage(client: ProviderClient, query: UsageQuery) -> Usage:
    """Read and sum what the query selects. Raises ClusterError; one that forbids names the verb and the resource."""
    deadline = client.deadline(query.budget)
    pods, by_pods = await _sum(client, query, _pods(query) if query.pods else [], deadline)
    claims, by_claims = await _sum(client, query, _claims(query) if query.claims else [], deadline)
    resources, by_resources = await _sum(client, query, _customs(query), deadline)
    return Usage(by_pods, by_claims, by_resources, pods, claims, resources)


# ----------------------------------------------------------------------------------------------------------- the lists


def _pods(query: UsageQuery) -> list[_List]:
    return [
        _List(f"/api/v1{path}/pods", parameters, "pods", names.label_selector(query.labels), pod_amounts)
        for path, parameters in _places(query)
    ]


def _claims(query: UsageQuery) -> list[_List]:
    selector, resource = names.label_selector(query.labels), "persistentvolumeclaims"
    return [
        _List(f"/api/v1{path}/{resource}", parameters, resource, selector, _of_claim)
        for path, parameters in _places(query)
    ]


def _customs(query: UsageQuery) -> list[_List]:
    return [
        _List(
            f"/apis/{{group}}/{{version}}{path}/{{plural}}",
            {"group": custom.group, "version": custom.version, "plural": custom.plural, **parameters},
            custom.resource,
            names.label_selector(query.labels if custom.labels is None else custom.labels),
            _of_custom(custom),
        )
        for custom in query.resources
        for path, parameters in _places(query)
    ]


def _places(query: UsageQuery) -> list[tuple[str, dict[str, str]]]:
    if not query.namespaces:
        return [("", {})]
    return [("/namespaces/{namespace}", {"namespace": name}) for name in dict.fromkeys(query.namespaces)]


# --------------------------------------------------------------------------------------------------------- their pages


async def _sum(client: ProviderClient, query: UsageQuery, lists: list[_List], deadline: float) -> tuple[int, Amounts]:
    count, total = 0, NOTHING
    for one in lists:
        listed, amounts = await _sum_of_list(client, query, one, deadline)
        count, total = count + listed, total + amounts
    return count, total


async def _sum_of_list(client: ProviderClient, query: UsageQuery, one: _List, deadline: float) -> tuple[int, Amounts]:
    for _ in range(RESTARTS):
        try:
            count, total = 0, NOTHING
            async for items in _pages(client, query, one, deadline):
                count += len(items)
                total = sum((_amounts(client, one, item) for item in items), total)
        except ClusterExpiredError:
            continue
        return count, total
    raise ClusterUnavailableError(
        f"the cluster of {shown(client.provider)} forgot the list of {one.resource} {RESTARTS} times before it was read"
    )


async def _pages(
    client: ProviderClient, query: UsageQuery, one: _List, deadline: float
) -> AsyncIterator[list[JsonObject]]:
    token = ""
    while True:
        answer = await client.get(
            one.path,
            one.parameters,
            _query(one.selector, query.page, token),
            deadline=deadline,
            asking=("list", one.resource),
        )
        yield _checked(client, one, answer.get("items"))
        following = _continuation(answer)
        if not following:
            return
        if following == token:
            raise ClusterAnswerError(f"the cluster of {shown(client.provider)} repeats a page of {one.resource}")
        token = following


def _query(selector: str, limit: int, token: str) -> list[tuple[str, str]]:
    given = [("labelSelector", selector), ("limit", str(limit)), ("continue", token)]
    return [(key, value) for key, value in given if value]


def _continuation(answer: JsonObject) -> str:
    metadata = answer.get("metadata")
    token = metadata.get("continue") if isinstance(metadata, dict) else None
    return token if isinstance(token, str) else ""


def _checked(client: ProviderClient, one: _List, items: object) -> list[JsonObject]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ClusterAnswerError(f"the cluster of {shown(client.provider)} answered with no list of {one.resource}")
    return items


def _amounts(client: ProviderClient, one: _List, item: JsonObject) -> Amounts:
    try:
        return one.amounts(item)
    except QuantityError as error:
        raise ClusterAnswerError(
            f"the cluster of {shown(client.provider)} has {_name(item)} among its {one.resource}: {error}"
        ) from error


def _name(item: JsonObject) -> str:
    metadata = item.get("metadata")
    found = metadata if isinstance(metadata, dict) else {}
    return f"{shown(found.get('name'))} in the namespace {shown(found.get('namespace'))}"


# --------------------------------------------------------------------------------------------------- what they request


def _of_claim(claim: JsonObject) -> Amounts:
    return Amounts(storage=sum(map(to_bytes, _found(claim, "spec.resources.requests.storage"))))


def _of_custom(custom: CustomResource) -> Callable[[JsonObject], Amounts]:
    def amounts(item: JsonObject) -> Amounts:
        one = Amounts(
            sum(map(to_millicores, _found(item, custom.cpu))),
            sum(map(to_bytes, _found(item, custom.memory))),
            sum(map(to_bytes, _found(item, custom.storage))),
        )
        count = 1
        for path in custom.replicas:
            count *= _count(_found(item, path), path)
        return one.times(count)

    return amounts


def _count(found: list[Any], path: str) -> int:
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in found):
        raise QuantityError(f"{path} is no count: {shown(found[0])}")
    return sum(found) if found else 1


def _found(item: object, path: str | None) -> list[Any]:
    """The values at a dotted path; none where it leads nowhere."""
    if path is None:
        return []
    found = [item]
    for key in path.split("."):
        found = [below for value in found for below in _below(value, key)]
    return [value for value in found if value is not None]


def _below(value: object, key: str) -> list[Any]:
    if isinstance(value, list) and key == "*":
        return value
    return [value[key]] if isinstance(value, dict) and key in value else []
