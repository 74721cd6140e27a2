"""Real traffic between network namespaces, real servers and clients, everything loaded as any user would.

    bench          the network, and a client that is nothing but a TCP socket
    wire           what is on the wire, and packets of one's own
    data           which network: a scenario and its routing file
    test_direct    servers and clients without a router: what is measured against, and what the others rely on
    test_requests, test_routes, test_connections, test_router
                   through the router and the agents: what is sent, where it goes, how connections live and end
    test_hostile_clients, test_agent
                   what is refused, and what somebody who sees nothing cannot break
    proxied        the fallback's proxies by themselves
    test_fallback_routes, test_fallback_attacks
                   they decide as XDP does, and nobody gets round it
    test_fallback, test_fallback_networks
                   what XDP does not route, through them
    test_replays   what somebody who sees everything cannot have executed twice
    test_path_mtu  links that are smaller than both ends know
    test_checks    the lab's checks and measures notice what they are there to notice
    test_cleanup   a run leaves the machine as it found it

Each needs root. Addresses are those of RFC 2544's benchmark network, and exist in these namespaces only.
"""
