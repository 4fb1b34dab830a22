"""Where components may call: places in their own network, and the addresses behind them."""

import pytest

from corral.functions.checks import check_spec
from corral.functions.engine.config import OutboundConfig
from corral.functions.engine.destinations import Destination, hosts_text, may_reach, networks, places
from corral.functions.model import Kind, RevisionSpec
from corral.kernel.errors import InvalidSpec


def test_a_name_has_one_place_for_all_its_ports_and_an_address_is_its_own_place() -> None:
    found = places(
        ("https://a.example", "http://a.example", "http://b.example:81", "http://10.1.2.3", "http://[fd00::1]:9")
    )

    assert [(str(each.destination), each.address) for each in found] == [
        ("a.example:443", "127.0.1.1:443"),
        ("a.example:80", "127.0.1.1:80"),
        ("b.example:81", "127.0.1.2:81"),
        ("10.1.2.3:80", "10.1.2.3:80"),
        ("[fd00::1]:9", "[fd00::1]:9"),
    ]
    assert hosts_text(found) == "127.0.0.1 localhost\n127.0.1.1 a.example\n127.0.1.2 b.example\n"


def test_a_destination_that_is_named_twice_has_one_place() -> None:
    assert [each.destination for each in places(("http://a.example", "http://a.example:80"))] == [
        Destination("a.example", 80)
    ]


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public_are_reached_only_if_they_are_opened(address: str) -> None:
    assert not may_reach(address, ())
    assert may_reach(address, networks(("0.0.0.0/0", "::/0")))


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_reached(address: str) -> None:
    assert may_reach(address, ())


def test_a_network_that_is_none_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(InvalidSpec, match=r'"10\.0\.0\.1/8" is no network'):
        OutboundConfig(networks=("10.0.0.1/8",))


def test_a_core_module_that_asks_to_call_out_hears_that_it_has_no_way() -> None:
    module = "b3:" + "0" * 64 + "-8"

    with pytest.raises(InvalidSpec, match="components for wasi:http do"):
        check_spec(RevisionSpec(module=module, kind=Kind.WASI_COMMAND, outbound=("http://a.example",)))
    check_spec(RevisionSpec(module=module, kind=Kind.HTTP_COMPONENT, outbound=("http://a.example",)))
