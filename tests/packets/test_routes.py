"""Routes: which of them a request takes. Host first, then exact path, then the longest prefix; method at each."""

import pytest

from packets import oracle
from packets.bench import RESETTING_PORT, RESETTING_VIP, Router, entry
from packets.frames import Connection, Segment, request
from packets.oracle import Route

NOT_FOUND = ("TX_NO_ROUTE", "404 Not Found")


class Requests:
    """Sends each request on a connection of its own, and says where it must go."""

    def __init__(self, router: Router) -> None:
        """Sends through that router."""
        self.router = router
        self.port = 50000

    def segment(self, target: str, method: str = "GET", host: str | None = "shop.test") -> Segment:
        self.port += 1
        return Connection(port=self.port).data(request(target, method=method, host=host))

    def go_to(self, cluster: str, *targets: str, method: str = "GET", host: str = "shop.test") -> None:
        for target in targets:
            self.router.opens(self.segment(target, method, host), cluster)

    def find_nothing(self, *targets: str, method: str = "GET", host: str = "shop.test") -> None:
        for target in targets:
            self.router.answers(self.segment(target, method, host), *NOT_FOUND)


@pytest.fixture
def requests(router: Router) -> Requests:
    return Requests(router)


# ---- path -----------------------------------------------------------------------------------------------


def test_an_exact_path_matches_itself_only(router: Router, requests: Requests) -> None:
    router.route(Route("api", exact="/health"))
    requests.go_to("api", "/health", "/health?x", "/health?")
    requests.find_nothing("/", "/health/", "/health/x", "/healt", "/healthy", "/Health", "/x/health")


def test_an_exact_path_may_end_in_a_slash(router: Router, requests: Requests) -> None:
    router.route(Route("api", exact="/dir/"), Route("web", exact="/"))
    requests.go_to("api", "/dir/")
    requests.go_to("web", "/", "/?/dir/")
    requests.find_nothing("/dir", "/dir/x")


def test_a_prefix_matches_whole_segments(router: Router, requests: Requests) -> None:
    router.route(Route("api", prefix="/api"))
    requests.go_to("api", "/api", "/api/", "/api/x", "/api/x/y/z", "/api?x", "/api/?x")
    requests.find_nothing("/", "/ap", "/apix", "/api-x", "/api.x", "/API", "/x/api", "/?/api")


def test_the_prefix_slash_matches_everything(router: Router, requests: Requests) -> None:
    router.route(Route("web", prefix="/"))
    requests.go_to("web", "/", "/x", "/x/", "/a/b/c/d/e/f/g", "/?x")


def test_the_longest_prefix_wins(router: Router, requests: Requests) -> None:
    router.route(
        Route("web", prefix="/"), Route("api", prefix="/a"), Route("web", prefix="/a/b"), Route("api", prefix="/a/b/c")
    )
    requests.go_to("web", "/", "/x/a", "/a/b", "/a/b/x", "/a/b/cc")
    requests.go_to("api", "/a", "/a/", "/a/bb", "/a/b/c", "/a/b/c/d/e")


def test_the_order_of_routes_does_not_matter(router: Router, requests: Requests) -> None:
    router.route(
        Route("api", exact="/a/b"), Route("web", prefix="/a/b"), Route("api", prefix="/"), Route("web", prefix="/a")
    )
    requests.go_to("api", "/", "/a/b", "/b")
    requests.go_to("web", "/a", "/a/b/", "/a/b/c", "/a/c")


def test_an_exact_path_wins_over_any_prefix(router: Router, requests: Requests) -> None:
    router.route(Route("api", exact="/a/b"), Route("web", prefix="/a/b"))
    requests.go_to("api", "/a/b")
    requests.go_to("web", "/a/b/", "/a/b/c")


@pytest.mark.parametrize("depth", [1, 2, 8, 16, 29, 30])
def test_prefixes_of_any_depth_match(router: Router, requests: Requests, depth: int) -> None:
    prefix = "/s" * depth
    router.route(Route("api", prefix=prefix), Route("web", prefix="/"))
    requests.go_to("api", prefix, prefix + "/", prefix + "/t", prefix + "/s" * 40)
    requests.go_to("web", prefix[:-2] or "/", prefix + "t", "/t" * depth)


@pytest.mark.parametrize("depth", [31, 32, 33, 64, 127, 128])
def test_a_path_may_be_deeper_than_any_prefix(router: Router, requests: Requests, depth: int) -> None:
    path = "/s" * depth
    router.route(Route("api", exact=path), Route("web", prefix="/s/s"))
    requests.go_to("api", path)
    requests.go_to("web", path[:-1] + "t")
    router.route(Route("web", prefix="/s/s"))
    requests.go_to("web", path)


@pytest.mark.parametrize("length", range(1, 26))
def test_segments_of_any_length_are_told_apart(router: Router, requests: Requests, length: int) -> None:
    """The hash takes words of eight bytes: a segment's end may fall on any of their bytes."""
    segment = ("segment-" * 4)[:length]
    router.route(Route("api", prefix=f"/{segment}"), Route("api", prefix=f"/x/{segment}"), Route("web", prefix="/"))
    requests.go_to("api", f"/{segment}", f"/{segment}/y", f"/x/{segment}", f"/x/{segment}/y?z")
    requests.go_to("web", f"/{segment}z", f"/{segment[:-1]}z", f"/x/{segment}z", f"/y/{segment}")


SPELLINGS = {
    "/caf%C3%A9": ["/caf%c3%a9", "/caf%C3%a9", "/caf%c3%A9"],
    "/@admin": ["/%40admin"],
    "/a+b": ["/a%2Bb", "/a%2bb"],
    "/%7Bid%7D": ["/{id}", "/%7bid%7d", "/%7Bid}", "/{id%7D"],
    "/!$&'()*+,;=:@": [f"/!$&'()*+,;=:@/%{byte:02X}" for byte in b"!$&'()*+,;=:@"],
    "/%5B": ["/["],
}


@pytest.mark.parametrize(("path", "others"), SPELLINGS.items(), ids=list(SPELLINGS))
def test_another_spelling_of_a_routes_path_does_not_get_past_it(
    router: Router, requests: Requests, path: str, others: list[str]
) -> None:
    """A server may read it as the route's path, so it must not go where a shorter prefix leads."""
    router.route(Route("api", prefix=path), Route("web", prefix="/"))
    requests.go_to("api", path, path + "/x", path + "/%20", path + "?%7b{@%40")
    requests.go_to("web", "/x", "/%20%22")
    for target in (*others, *(f"{other}/x" for other in others)):
        router.answers(requests.segment(target), "TX_BAD_REQUEST", "400 Bad Request")


def test_where_no_route_has_another_spelling_all_are_routed(router: Router, requests: Requests) -> None:
    router.route(Route("api", prefix="/caf-e_~.x"), Route("web", prefix="/"))
    requests.go_to("web", *(other for others in SPELLINGS.values() for other in others))
    requests.go_to("api", "/caf-e_~.x/%40/%c3%a9/{}")


# ---- method ---------------------------------------------------------------------------------------------


def test_a_route_that_names_the_method_wins_over_one_that_does_not(router: Router, requests: Requests) -> None:
    router.route(Route("web", exact="/x"), Route("api", exact="/x", method="POST"), Route("web", prefix="/y"))
    requests.go_to("api", "/x", method="POST")
    for method in ("GET", "PUT", "HEAD", "PATCH"):
        requests.go_to("web", "/x", method=method)


def test_a_method_without_route_goes_on_to_the_next_best_path(router: Router, requests: Requests) -> None:
    router.route(
        Route("api", exact="/a/b", method="POST"), Route("api", prefix="/a", method="PUT"), Route("web", prefix="/")
    )
    requests.go_to("api", "/a/b", method="POST")
    requests.go_to("api", "/a/b", method="PUT")
    requests.go_to("web", "/a/b", method="GET")
    requests.go_to("web", "/a/x", method="POST")


def test_a_longer_path_for_any_method_wins_over_a_shorter_one_that_names_it(router: Router, requests: Requests) -> None:
    router.route(Route("web", prefix="/a/b"), Route("api", prefix="/a", method="GET"))
    requests.go_to("web", "/a/b/c", "/a/b")
    requests.go_to("api", "/a/c")


def test_a_method_that_no_route_takes_finds_nothing(router: Router, requests: Requests) -> None:
    router.route(Route("api", prefix="/", method="GET"), Route("web", exact="/x", method="PUT"))
    requests.find_nothing("/", "/x", method="POST")
    requests.find_nothing("/", method="HEAD")


# ---- host -----------------------------------------------------------------------------------------------


def test_a_known_host_has_its_own_routes_and_no_others(router: Router, requests: Requests) -> None:
    router.route(Route("api", prefix="/api", host="shop.test"), Route("web", prefix="/"))
    requests.go_to("api", "/api")
    requests.find_nothing("/", "/web")
    requests.go_to("web", "/", "/api", host="other.test")


def test_a_known_host_without_a_route_for_the_method_does_not_fall_back(router: Router, requests: Requests) -> None:
    router.route(Route("api", prefix="/", host="shop.test", method="POST"), Route("web", prefix="/"))
    requests.find_nothing("/")
    requests.go_to("api", "/", method="POST")


def test_an_unknown_host_finds_nothing_where_every_route_names_one(router: Router, requests: Requests) -> None:
    router.route(Route("api", prefix="/", host="shop.test"))
    requests.go_to("api", "/", host="SHOP.test:80")
    requests.find_nothing("/", host="other.test")
    requests.find_nothing("/", host="www.shop.test")
    requests.find_nothing("/", host="shop.tes")


def test_a_vip_without_routes_finds_nothing(router: Router, requests: Requests) -> None:
    router.route()
    requests.find_nothing("/", "/api")


WILD = (
    Route("api", prefix="/", host="*.shop.test"),
    Route("web", prefix="/", host="*.a.shop.test"),
    Route("api", prefix="/", host="b.a.shop.test"),
    Route("web", prefix="/any"),
)


@pytest.mark.parametrize(
    ("host", "cluster"),
    [
        ("www.shop.test", "api"),
        ("WWW.Shop.Test:8080", "api"),
        ("www.shop.test.", "api"),
        ("x.y.z.shop.test", "api"),
        ("-.shop.test", "api"),
        ("aa.shop.test", "api"),
        ("x.aa.shop.test", "api"),
        ("a.shop.test", "api"),  # nothing stands for the longer one's star
        ("x.a.shop.test", "web"),
        ("x.b.a.shop.test", "web"),
        ("b.a.shop.test", "api"),  # an exact name
        ("a.shop.test.a.shop.test", "web"),
        ("shop.test.shop.test", "api"),
    ],
)
def test_the_wildcard_with_most_labels_counts_after_exact_names(requests: Requests, host: str, cluster: str) -> None:
    requests.router.route(*WILD)
    requests.go_to(cluster, "/", "/any", host=host)


@pytest.mark.parametrize(
    "host",
    [
        "shop.test",
        ".shop.test",  # nothing stands for the star
        "wwwshop.test",
        "www.shop.tes",
        "www.shop.testt",
        "www.shop.test.x",
        "www.shop-test",
        "www.xshop.test",
        "shop.test.",
        "test",
    ],
)
def test_what_no_wildcard_fits_is_any_hosts(requests: Requests, host: str) -> None:
    requests.router.route(*WILD)
    requests.go_to("web", "/any", host=host)
    requests.find_nothing("/", host=host)


@pytest.mark.parametrize("labels", range(1, 31))
def test_wildcards_of_any_number_of_labels(router: Router, requests: Requests, labels: int) -> None:
    suffix = ".".join("abcdefgh"[: 1 + number % 8] for number in range(labels))
    router.route(Route("api", prefix="/", host=f"*.{suffix}"), Route("web", prefix="/"))
    requests.go_to("api", "/", host=f"x.{suffix}")
    requests.go_to("api", "/", host=f"x.y.{suffix}")
    requests.go_to("web", "/", host=suffix)
    requests.go_to("web", "/", host=f"x{suffix}")


def test_the_longest_name_fits_a_wildcard(router: Router, requests: Requests) -> None:
    router.route(Route("api", prefix="/", host="*.test"), Route("web", prefix="/"))
    requests.go_to("api", "/", host="a." * 124 + "test")
    requests.go_to("web", "/", host="a." * 124 + "tesu")


def test_a_wildcards_routes_are_the_only_ones(router: Router, requests: Requests) -> None:
    """As an exact name's: there is no way back to shorter wildcards, or to any host."""
    router.route(
        Route("api", prefix="/only", host="*.a.test"), Route("web", prefix="/", host="*.test"), Route("web", prefix="/")
    )
    requests.go_to("api", "/only", host="x.a.test")
    requests.find_nothing("/", host="x.a.test")
    requests.go_to("web", "/", host="x.b.test")


def test_wildcards_are_a_vips_own(router: Router) -> None:
    """The other VIP has none of its own, and does not find them."""
    router.route(Route("api", prefix="/", host="*.test"))
    there = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
    router.resets(there.data(request("/", host="x.test")), "TX_RESET_NO_ROUTE")


def test_a_wildcard_that_collides_with_another_name_does_not_match(router: Router, requests: Requests) -> None:
    router.route(Route("web", prefix="/"), Route("api", prefix="/", host="*.shop.test"))
    entries = router.object.maps["hosts"]
    ((key, value),) = entries.items()
    entries.update(key | {"hash": oracle.words_hash(b".evil.test")}, value)
    requests.go_to("web", "/", host="x.evil.test")


def test_hosts_do_not_share_their_paths(router: Router, requests: Requests) -> None:
    router.route(Route("api", exact="/x", host="a.test"), Route("web", exact="/y", host="b.test"))
    requests.go_to("api", "/x", host="a.test")
    requests.go_to("web", "/y", host="b.test")
    requests.find_nothing("/y", host="a.test")
    requests.find_nothing("/x", host="b.test")


# ---- VIPs -----------------------------------------------------------------------------------------------


def test_vips_do_not_share_their_routes(router: Router) -> None:
    there = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
    router.opens(there.data(request("/open", host="any.test")), "web")
    router.route(Route("api", prefix="/", host="shop.test"))
    router.resets(there.reopened(there.isn + 77).data(request("/", host="shop.test")), "TX_RESET_NO_ROUTE")


@pytest.mark.parametrize("target", ["/", "/other", "/open/x"])
def test_where_so_configured_no_route_means_a_reset(router: Router, target: str) -> None:
    there = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
    router.resets(there.data(request(target)), "TX_RESET_NO_ROUTE")


def test_a_malformed_request_is_answered_also_where_no_route_means_a_reset(router: Router) -> None:
    there = Connection(server=RESETTING_VIP, server_port=RESETTING_PORT)
    router.answers(there.data(request("//")), "TX_BAD_REQUEST", "400 Bad Request")


# ---- clusters -------------------------------------------------------------------------------------------


def test_a_cluster_without_weight_is_unavailable(router: Router) -> None:
    router.answers(Connection().data(request("/drained")), "TX_UNAVAILABLE", "503 Service Unavailable")


def test_the_entry_names_cluster_and_backend(router: Router) -> None:
    connection = Connection()
    for target, cluster in (("/", "web"), ("/api", "api")):
        segment = connection.data(request(target))
        router.opens(segment, cluster)
        assert router.flow(connection) == entry(segment, cluster, router.backend_of(cluster, connection))
        connection = connection.reopened(connection.isn + 100_000)


# ---- collisions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [oracle.PATH_EXACT, oracle.PATH_PREFIX])
def test_a_path_that_collides_with_a_routes_hash_does_not_match(router: Router, requests: Requests, kind: int) -> None:
    """The entry is found under the hash of /secret, but it is another path's."""
    router.route(Route("api", exact="/public"), Route("api", prefix="/public"), Route("web", prefix="/"))
    key = {"hash": oracle.path_hash(b"/secret"), "host": 1, "length": len("/secret"), "kind": kind}
    router.object.maps["paths"].update(key, {"route": [1025] + [0] * 9, "path": b"/public"})
    requests.go_to("web", "/secret")
    requests.go_to("api", "/public")


def test_a_host_that_collides_with_another_does_not_match(router: Router, requests: Requests) -> None:
    router.route(Route("web", prefix="/"), Route("api", prefix="/", host="shop.test"))
    key = {"hash": oracle.words_hash(b"evil.test"), "names": 1, "length": len("evil.test")}
    entries = router.object.maps["hosts"]
    entries.update(key, next(value for value_key, value in entries.items() if value_key["names"] == 1))
    requests.go_to("web", "/", host="evil.test")
    requests.go_to("api", "/", host="shop.test")
