"""A kubeconfig is data: what would run a program, read a file or lead the connection astray is refused by name."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster import ProviderCredentials, credentials, from_directory, from_kubeconfig, in_cluster
from agent.errors import ClusterError, CredentialsError, UsageError
from tests.faulty import kubeconfig

Json = dict[str, Any]

URL = "https://api.example:6443"
PEM = "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n"
DATA = base64.b64encode(PEM.encode()).decode()
HIDDEN = "hunter2-the-secret"


def problems_of(document: Any, *, allow_insecure: bool = False) -> list[str]:
    """Return what is wrong with a kubeconfig."""
    with pytest.raises(CredentialsError) as refused:
        from_kubeconfig(document, provider="p1", allow_insecure=allow_insecure)
    return refused.value.problems


def test_the_current_context_says_where_and_who() -> None:
    """Of several clusters and users those of the current context are taken."""
    document = kubeconfig(URL, {"token": HIDDEN}, {"certificate-authority-data": DATA, "tls-server-name": "api"})
    document["clusters"].insert(0, {"name": "other", "cluster": {"server": "https://other"}})
    document["users"].insert(0, {"name": "other", "user": {"token": "other"}})
    found = from_kubeconfig(document)
    assert found == ProviderCredentials(URL, ca=PEM, authorization=f"Bearer {HIDDEN}", tls_server_name="api")


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps, lambda tree: json.dumps(tree, indent="\t")])
@pytest.mark.parametrize("encode", [str, str.encode])
def test_it_may_be_yaml_or_json_text_or_bytes_or_a_mapping(dump: Any, encode: Any) -> None:
    """However a platform keeps it, it means the same, and has the same fingerprint."""
    document = kubeconfig(URL, {"token": HIDDEN}, {"certificate-authority-data": DATA})
    expected = from_kubeconfig(document)
    assert from_kubeconfig(encode(dump(document))) == expected
    assert from_kubeconfig(encode(dump(document))).fingerprint == expected.fingerprint


def test_a_name_and_a_password_are_data() -> None:
    """Quotes, dollars, slashes, line ends and other scripts pass through; the header is theirs in base64 (RFC 7617)."""
    name, password = "ops'\"$", "p'ä\"ss: /../${x}\r\nX-Evil: 1\x00"
    found = from_kubeconfig(kubeconfig(URL, {"username": name, "password": password}))
    assert found.authorization is not None
    scheme, encoded = found.authorization.split(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", f"{name}:{password}")


def test_a_client_certificate_comes_with_its_key() -> None:
    """Both are taken as PEM texts; one without the other is refused."""
    found = from_kubeconfig(kubeconfig(URL, {"client-certificate-data": DATA, "client-key-data": DATA}))
    assert (found.certificate, found.key, found.authorization) == (PEM, PEM, None)
    assert problems_of(kubeconfig(URL, {"client-key-data": DATA})) == [
        "client-certificate-data and client-key-data go together"
    ]


@pytest.mark.parametrize(
    "key,value",
    [
        ("exec", {"command": "/bin/sh", "args": ["-c", HIDDEN]}),
        ("auth-provider", {"name": "gcp", "config": {"cmd-path": HIDDEN}}),
        ("client-certificate", f"/etc/{HIDDEN}"),
        ("client-key", f"/etc/{HIDDEN}"),
        ("tokenFile", f"/etc/{HIDDEN}"),
        ("as", "system:admin"),
        ("as-groups", ["system:masters"]),
        ("as-user-extra", {"a": ["b"]}),
        ("as-uid", "0"),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",
)
def test_what_a_user_must_not_carry_is_refused_by_name(key: str, value: object) -> None:
    """The key and the user are named, the value is not; a token beside it changes nothing."""
    (problem,) = problems_of(kubeconfig(URL, {"token": "t", key: value}))
    assert problem.startswith(f"user 'test' carries {key}: ")
    assert HIDDEN not in problem


@pytest.mark.parametrize("key,value", [("certificate-authority", "/etc/ca.crt"), ("proxy-url", "http://evil:8080")])
def test_what_a_cluster_must_not_carry_is_refused_by_name(key: str, value: str) -> None:
    """A file of this machine and a proxy are refused, data beside it or not."""
    (problem,) = problems_of(kubeconfig(URL, {}, {key: value, "certificate-authority-data": DATA}))
    assert problem.startswith(f"cluster 'test' carries {key}: ")


def test_it_is_refused_in_users_that_the_context_does_not_name() -> None:
    """A kubeconfig that carries a program anywhere is not one to keep, and all that is wrong is told at once."""
    document = kubeconfig(URL, {"token": "t"}, {"proxy-url": "http://x"})
    document["users"].append({"name": "spare", "user": {"exec": {"command": "x"}, "tokenFile": "/x"}})
    assert [problem.partition(":")[0] for problem in problems_of(document)] == [
        "user 'spare' carries exec",
        "user 'spare' carries tokenFile",
        "cluster 'test' carries proxy-url",
    ]


def test_empty_keys_carry_nothing() -> None:
    """What tools leave empty is not there."""
    empty = {"exec": None, "tokenFile": "", "client-key": "", "token": "t"}
    found = from_kubeconfig(kubeconfig(URL, empty, {"proxy-url": "", "insecure-skip-tls-verify": False}))
    assert found.verify


def test_verification_is_only_skipped_where_that_is_allowed() -> None:
    """An unverified server needs both: the kubeconfig that asks for it and the setting that allows it."""
    document = kubeconfig(URL, {"token": "t"}, {"insecure-skip-tls-verify": True})
    assert problems_of(document) == ["cluster 'test' carries insecure-skip-tls-verify: it is not allowed here"]
    assert not from_kubeconfig(document, allow_insecure=True).verify
    assert from_kubeconfig(kubeconfig(URL, {"token": "t"}), allow_insecure=True).verify


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example",
        "ftp://api.example",
        "file:///etc/passwd",
        "https://",
        "https://user:hunter2-the-secret@api.example",
        "https://user@api.example",
        "https://api.example/?a=b",
        "https://api.example/#a",
        "https://api.example:port",
        "https://api.example\r\nHost: x",
        "https://api exam.ple",
        "https://[::1",
        "//api.example",
        "",
        7,
        None,
    ],
    ids=repr,
)
def test_a_server_is_an_https_url_and_nothing_more(url: Any) -> None:
    """Anything else is refused, without repeating a password that may stand in it."""
    (problem, *_) = problems_of(kubeconfig(url, {"token": "t"}))
    assert "server" in problem
    assert HIDDEN not in problem


def test_a_server_may_have_a_path_and_an_ipv6_address() -> None:
    """Gateways put clusters under paths; a slash at the end is dropped."""
    assert from_kubeconfig(kubeconfig("https://rancher.example/k8s/clusters/c-1/")).server.endswith("/clusters/c-1")
    assert from_kubeconfig(kubeconfig("https://[fd00::1]:6443")).server == "https://[fd00::1]:6443"


@pytest.mark.parametrize("token", ["a\nb", "a\r\nX-Evil: 1", "a b", "ä", "a\x00", "\t"], ids=repr)
def test_a_token_cannot_break_out_of_its_header(token: str) -> None:
    """Blanks, line ends and other scripts are in no token, so they are refused; the token is not shown."""
    (problem,) = problems_of(kubeconfig(URL, {"token": token}))
    assert problem.startswith("token holds characters")


@pytest.mark.parametrize("bad", ["%%%", "bm8gcGVt", DATA[:-3], base64.b64encode(b"\xff\xfe").decode(), 7], ids=repr)
def test_certificates_are_base64_of_pem(bad: Any) -> None:
    """What is not is refused by its key."""
    (problem, *_) = problems_of(kubeconfig(URL, {}, {"certificate-authority-data": bad}))
    assert problem.startswith("certificate-authority-data ")


def test_base64_may_be_wrapped() -> None:
    """Lines of 64 characters, as openssl writes them, are one text."""
    wrapped = "\n".join(DATA[index : index + 16] for index in range(0, len(DATA), 16)) + "\n"
    assert from_kubeconfig(kubeconfig(URL, {}, {"certificate-authority-data": wrapped})).ca == PEM


@pytest.mark.parametrize(
    "document,problem",
    [
        ("", "it is no mapping"),
        ("[]", "it is no mapping"),
        ("just text", "it is no mapping"),
        ("a: b: c", "it is neither YAML nor JSON: line 1, column 5"),
        ("a: 1\n---\nb: 2", "it is neither YAML nor JSON"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        ("a: &x 1\nb: *x", "YAML anchors and aliases are not accepted"),
        ("a: !!python/object/apply:os.system [id]", "YAML tags are not accepted"),
        ("a: !!int 1", "YAML tags are not accepted"),
        ("[" * 33, "it is nested deeper than 32"),
        ("[" * 200_000, "it is nested deeper than 32"),
        ("- " * 1000, "it is nested deeper than 32"),
        ("{" * 200_000, "it is nested deeper than 32"),
        ("x" * (256 * 1024 + 1), "it is larger than 256 KiB"),
        ("[" + "1," * 20_000 + "]", "has more than 10000 parts"),
        (json.dumps({"a": [1] * 20_000}), "it has more than 10000 parts"),
        ({"a": "x" * 300_000}, "is larger than 256 KiB"),
        ("{}", "its current-context None is not among its contexts"),
        ({"current-context": ["x"]}, "its current-context a value of type list is not among its contexts"),
        ({"current-context": "x", "contexts": "x"}, "its current-context 'x' is not among its contexts"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_kubeconfig_is_refused(document: Any, problem: str) -> None:
    """Malformed, hostile and oversized documents end in an error that says what is wrong, and soon."""
    (found, *_) = problems_of(document)
    assert problem in found


def test_a_tree_that_contains_itself_is_refused() -> None:
    """A mapping handed over by the application is bounded as well."""
    tree: Json = {}
    tree["a"] = [tree]
    assert "it has more than 10000 parts" in problems_of(tree)[0]


def test_an_alias_bomb_costs_nothing() -> None:
    """References to references are refused at the first one."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + level)}: &{chr(98 + level)} [{','.join([f'*{chr(97 + level)}'] * 9)}]\n" for level in range(9)
    )
    assert problems_of(bomb) == ["YAML anchors and aliases are not accepted"]


def test_numbers_and_dates_of_yaml_are_text() -> None:
    """A token that looks like a number is a token; reading it as a number to the base of 60 would take minutes."""
    text = yaml.safe_dump(kubeconfig(URL)).replace("user: {}", "user:\n    token: 0012")
    assert from_kubeconfig(text).authorization == "Bearer 0012"
    sexagesimal = ":".join(["59"] * 80_000)
    assert "token holds" not in str(from_kubeconfig(text.replace("0012", sexagesimal)))


def test_a_cluster_or_user_that_does_not_exist_is_named() -> None:
    """A context that leads nowhere is told by the name that it leads to."""
    document = kubeconfig(URL)
    document["contexts"][0]["context"] = {"cluster": "gone", "user": "nobody"}
    assert problems_of(document) == [
        "its cluster 'gone' is not among its clusters",
        "its user 'nobody' is not among its users",
    ]


def test_a_context_without_a_user_asks_anonymously() -> None:
    """What that may do is up to the cluster."""
    document = kubeconfig(URL)
    del document["contexts"][0]["context"]["user"]
    assert from_kubeconfig(document).authorization is None


def test_secrets_are_not_shown() -> None:
    """Neither the credentials nor an error about them repeat a token, a password or a key."""
    key = base64.b64encode(f"-----BEGIN KEY----- {HIDDEN}".encode()).decode()
    user = {"token": HIDDEN, "client-certificate-data": DATA, "client-key-data": key}
    found = from_kubeconfig(kubeconfig(URL, user))
    assert HIDDEN not in repr(found) + str(found)
    assert HIDDEN not in found.fingerprint + found.short_fingerprint
    assert len(found.short_fingerprint) == 12
    with pytest.raises(CredentialsError) as refused:
        from_kubeconfig(kubeconfig(URL, {**user, "exec": {"command": HIDDEN}}))
    assert HIDDEN not in str(refused.value)


def test_an_error_of_yaml_does_not_quote_the_document() -> None:
    """The place is told, not the line, in which a secret may stand."""
    assert HIDDEN not in str(problems_of(f"token: {HIDDEN}: x"))


def test_the_fingerprint_follows_what_counts() -> None:
    """Another token, server or authority is another fingerprint; names, order and other users are not."""
    document = kubeconfig(URL, {"token": "a"}, {"certificate-authority-data": DATA})
    base = from_kubeconfig(document).fingerprint
    renamed = json.loads(json.dumps(document).replace('"test"', '"renamed"'))
    renamed["users"].append({"name": "spare", "user": {"token": "b"}})
    assert from_kubeconfig(renamed).fingerprint == base
    changed = [
        kubeconfig(URL, {"token": "b"}, {"certificate-authority-data": DATA}),
        kubeconfig(URL, {"token": "a"}),
        kubeconfig(URL + "0", {"token": "a"}, {"certificate-authority-data": DATA}),
    ]
    assert len({base, *(from_kubeconfig(one).fingerprint for one in changed)}) == 4


def test_the_error_is_one_of_a_cluster_and_names_the_provider() -> None:
    """An audit catches ClusterError and goes on with the other providers."""
    with pytest.raises(ClusterError, match=r"the kubeconfig of 'p1' is refused: it is no mapping"):
        from_kubeconfig("x", provider="p1")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["current-context", "clusters", "users", "contexts", "name", "cluster", "user", "server"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
    | st.text(max_size=60)
    | st.binary(max_size=60)
)
@settings(deadline=None)
def test_any_document_gives_credentials_or_an_error_of_ours(document: Any) -> None:
    """Whatever stands in the field, nothing but CredentialsError comes out, and never a server that is no URL."""
    try:
        found = from_kubeconfig(document)
    except CredentialsError:
        return
    assert found.server.startswith("https://")


# --------------------------------------------------------------------------------------------------------- directories


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A directory as the kubelet mounts a Secret: links to files in a hidden directory, itself behind a link."""
    mount = tmp_path / "providers"
    hidden = mount / "..2026_01_01"
    hidden.mkdir(parents=True)
    (hidden / "p1").write_text(json.dumps(kubeconfig(URL, {"token": "one"})))
    (hidden / "p2.yaml").write_text(yaml.safe_dump(kubeconfig(URL, {"token": "two"})))
    (mount / "..data").symlink_to("..2026_01_01")
    for name in ("p1", "p2.yaml"):
        (mount / name).symlink_to(f"..data/{name}")
    return mount


async def test_a_mounted_directory_holds_one_file_a_provider(mounted: Path) -> None:
    """The file has the provider's name, with a suffix where that is the custom."""
    assert (await from_directory(mounted, "p1")).authorization == "Bearer one"
    assert (await from_directory(mounted, "p2", suffix=".yaml")).authorization == "Bearer two"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..data/p1", "", "..", "p1\x00", "p1/../p1", "a'b", "$HOME"]
)
async def test_a_name_that_is_no_file_name_is_refused(mounted: Path, name: str) -> None:
    """A provider's name comes from a document and may be anything: it never becomes a path."""
    with pytest.raises(UsageError, match="is no name for a file"):
        await from_directory(mounted, name)


async def test_a_link_out_of_the_directory_is_not_followed(mounted: Path, tmp_path: Path) -> None:
    """A file elsewhere is not read, although the link lies in the directory."""
    (tmp_path / "elsewhere").write_text(json.dumps(kubeconfig(URL, {"token": "elsewhere"})))
    (mounted / "p3").symlink_to("../elsewhere")
    assert (mounted / "p3").exists()
    with pytest.raises(CredentialsError, match="it lies outside the directory"):
        await from_directory(mounted, "p3")


async def test_what_is_no_regular_file_is_refused_at_once(mounted: Path) -> None:
    """A named pipe would be waited for, a directory cannot be read."""
    os.mkfifo(mounted / "pipe")
    (mounted / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CredentialsError, match=r"it is no regular file|Is a directory"):
            await from_directory(mounted, name)


async def test_a_missing_file_is_named(mounted: Path) -> None:
    """The message says which file, and the provider."""
    with pytest.raises(CredentialsError, match=r"the kubeconfig of 'p9' .* file 'p9' cannot be read: No such file"):
        await from_directory(mounted, "p9")


async def test_a_file_is_read_up_to_the_bound(mounted: Path) -> None:
    """A huge file costs no more than the largest that is accepted."""
    (mounted / "huge").write_bytes(b"#" * (credentials.MAX_SIZE * 4))
    with pytest.raises(CredentialsError, match="larger than 256 KiB"):
        await from_directory(mounted, "huge")


async def test_a_file_cannot_bring_a_path_either(mounted: Path) -> None:
    """What is refused in a document is refused in a file."""
    (mounted / "p4").write_text(json.dumps(kubeconfig(URL, {"tokenFile": "/etc/shadow"})))
    with pytest.raises(CredentialsError, match="carries tokenFile"):
        await from_directory(mounted, "p4")


# ---------------------------------------------------------------------------------------------------------- in-cluster


def service_account(folder: Path) -> Path:
    """Make what the kubelet mounts for a pod's account."""
    (folder / "token").write_text("first\n")
    (folder / "ca.crt").write_text(PEM)
    return folder


ENVIRONMENT = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


async def test_a_pod_finds_its_own_account(tmp_path: Path) -> None:
    """Address from the environment, token and authority from the mounted directory."""
    found = await in_cluster(service_account(tmp_path), ENVIRONMENT)
    assert found == ProviderCredentials("https://10.0.0.1:443", ca=PEM, authorization="Bearer first")


async def test_a_renewed_token_is_another_fingerprint(tmp_path: Path) -> None:
    """So the cache makes a new client when the kubelet has renewed it."""
    before = await in_cluster(service_account(tmp_path), ENVIRONMENT)
    (tmp_path / "token").write_text("second\n")
    assert (await in_cluster(tmp_path, ENVIRONMENT)).fingerprint != before.fingerprint


async def test_an_ipv6_address_is_put_in_brackets(tmp_path: Path) -> None:
    """Clusters with IPv6 alone set such a host."""
    environment = {**ENVIRONMENT, "KUBERNETES_SERVICE_HOST": "fd00::1"}
    assert (await in_cluster(service_account(tmp_path), environment)).server == "https://[fd00::1]:443"


async def test_outside_a_cluster_it_is_an_error(tmp_path: Path) -> None:
    """Without the environment, or without the account, the message says so."""
    with pytest.raises(CredentialsError, match="this is no pod"):
        await in_cluster(service_account(tmp_path), {})
    with pytest.raises(CredentialsError, match="the service account cannot be read: No such file"):
        await in_cluster(tmp_path / "missing", ENVIRONMENT)
