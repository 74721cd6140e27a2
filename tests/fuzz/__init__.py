"""Does the router read a request head as the servers behind it do?

    heads      request heads, most of them valid: a grammar, the classic smuggling vectors, and changes to both
    reading    the rules of docs/http.md and of RFC 9112, written again from their text: a reader and a route matcher
    swift      the router's program at 20 us a head, by BPF_PROG_TEST_RUN
    readers    who else reads them: nginx, HAProxy, uvicorn (httptools) as servers, and h11
    judging    what each of them made of a head, and what may not differ
    hunting    rounds of the above, and how a difference becomes small
    echo       what uvicorn serves
    regressions/   heads that were, or could have been, read differently: always tried

One rule: what the router routes, no server delimits or routes otherwise. It may refuse what it likes, though not much
of what is valid.
"""

import pytest

pytest.register_assert_rewrite("packets.bench")
