"""From parameters to single addresses: hosts, ports, sockets, services, and names that are looked up or are not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from psycopg import conninfo

from pgconcert.errors import ConfigurationError, Unavailable
from pgconcert.postgres.addresses import attempts

ENVIRONMENT = (
    "HOST",
    "HOSTADDR",
    "PORT",
    "SERVICE",
    "SERVICEFILE",
    "SYSCONFDIR",
    "TARGETSESSIONATTRS",
    "LOADBALANCEHOSTS",
)
NAMES = {"one": ["10.0.0.1"], "two": ["10.0.0.2", "fd00::2"], "twice": ["10.0.0.3", "10.0.0.3"]}
Found = list[tuple[str | None, str | None, str | None]]


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(f"PG{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def look_up(host: str, port: str, **wanted: object) -> list[tuple[object, ...]]:
        if host not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (numeric, int(port))) for numeric in NAMES[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def found(**parameters: str) -> Found:
    known = [conninfo.conninfo_to_dict(attempt.conninfo) for attempt in attempts(parameters)]
    return [tuple(str(one[name]) if name in one else None for name in ("host", "hostaddr", "port")) for one in known]  # type: ignore[misc]


def labels(**parameters: str) -> list[str]:
    return [attempt.label for attempt in attempts(parameters)]


def test_one_name() -> None:
    assert found(host="one") == [("one", "10.0.0.1", None)]
    assert labels(host="one", port="5433") == ["one:5433 (10.0.0.1)"]


def test_every_address_of_every_name_in_order() -> None:
    assert found(host="two,one", port="1,2") == [
        ("two", "10.0.0.2", "1"),
        ("two", "fd00::2", "1"),
        ("one", "10.0.0.1", "2"),
    ]


def test_an_address_is_tried_once() -> None:
    assert found(host="twice") == [("twice", "10.0.0.3", None)]


def test_one_port_serves_all_hosts() -> None:
    assert [port for _, _, port in found(host="one,two", port="7")] == ["7", "7", "7"]


def test_hostaddr_needs_no_look_up() -> None:
    assert found(host="unknown", hostaddr="10.9.9.9") == [("unknown", "10.9.9.9", None)]
    assert found(hostaddr="10.9.9.9,10.9.9.8") == [(None, "10.9.9.9", None), (None, "10.9.9.8", None)]
    assert labels(hostaddr="10.9.9.9") == ["10.9.9.9:5432"]


def test_sockets_need_no_look_up() -> None:
    assert found(host="/run/postgresql,@abstract") == [("/run/postgresql", None, None), ("@abstract", None, None)]
    assert labels(host="/run/postgresql") == ["/run/postgresql"]
    assert labels() == ["the default socket:5432"]


@pytest.mark.parametrize(
    ("parameters", "what"),
    [({"host": "one,two,one", "port": "1,2"}, "port"), ({"host": "one", "hostaddr": "a,b"}, "host")],
)
def test_lists_that_do_not_fit(parameters: dict[str, str], what: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"values of {what}$"):
        attempts(parameters)


def test_the_environment_fills_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "one")
    monkeypatch.setenv("PGPORT", "7")
    assert found() == [("one", "10.0.0.1", "7")]
    assert found(host="two")[0] == ("two", "10.0.0.2", "7")


def test_names_that_do_not_resolve() -> None:
    assert found(host="nowhere,one") == [("one", "10.0.0.1", None)]
    with pytest.raises(Unavailable, match=r"nowhere: Name or service not known; gone: Name") as caught:
        attempts({"host": "nowhere,gone", "password": "s3cr3t"})
    assert "s3cr3t" not in str(caught.value)


def test_a_name_that_is_no_name_is_unavailable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(Unavailable):
        attempts({"host": "a" * 64 + ".invalid"})


def test_prefer_standby_asks_all_hosts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(**parameters: str) -> list[tuple[object, object]]:
        known = [conninfo.conninfo_to_dict(one.conninfo) for one in attempts(parameters)]
        return [(one["host"], one.get("target_session_attrs")) for one in known]

    both = [("one", "standby"), ("twice", "standby"), ("one", "any"), ("twice", "any")]
    assert wanted(host="one,twice", target_session_attrs="prefer-standby") == both
    assert wanted(host="one", target_session_attrs="read-write") == [("one", "read-write")]
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "prefer-standby")
    assert wanted(host="one,twice") == both


def test_load_balancing_shuffles_and_loses_nothing() -> None:
    orders = {tuple(found(host="one,two,twice", load_balance_hosts="random")) for _ in range(60)}
    assert len(orders) > 1
    assert {tuple(sorted(order, key=str)) for order in orders} == {tuple(sorted(found(host="one,two,twice"), key=str))}


def test_a_service_is_read_and_overridden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_text("# ours\n[other]\nhost=two\n[billing]\nhost=one\nport=7\npassword=a%b\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert found(service="billing") == [("one", "10.0.0.1", "7")]
    assert found(service="billing", port="8") == [("one", "10.0.0.1", "8")]
    assert "a%b" in attempts({"service": "billing"})[0].conninfo
    assert "a%b" not in attempts({"service": "billing"})[0].label
    monkeypatch.setenv("PGSERVICE", "other")
    assert found()[0][0] == "two"


def test_the_services_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pg_service.conf").write_text("[billing]\nhost=one\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "missing"))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))
    assert found(service="billing") == [("one", "10.0.0.1", None)]


def test_an_unknown_service_names_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match=r"'billing' is not defined in .*missing"):
        attempts({"service": "billing"})


def test_a_service_with_indented_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "services"
    file.write_text("[billing]\nhost=one\n  port=7\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert found(service="billing") == [("one", "10.0.0.1", "7")]
