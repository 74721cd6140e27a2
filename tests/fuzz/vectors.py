"""The classic vectors: heads, and parts of heads, that servers are known to disagree on, and a browser's fields.

One a line, with Python's escapes. Sources: RFC 9112, 11.2; the request-smuggling literature since C. Linhart et al.,
"HTTP Request Smuggling" (2005); and what the fuzzer found.
"""

CRLF = b"\r\n"


def _lines(text: str) -> tuple[bytes, ...]:
    return tuple(line.encode().decode("unicode_escape").encode("latin-1") for line in text.strip("\n").split("\n"))


def _head(*fields: bytes, line: bytes = b"POST /api HTTP/1.1", host: bytes = b"Host: shop.test") -> bytes:
    return CRLF.join([line, host, *fields, b"", b""])


LENGTHS = (
    b"",
    *_lines(r"""
5
0
+5
-5
-0
5\x20
\x205
\t5
5\t
5 5
5,5
5, 5
5,
,5
05
0x5
5.0
5e0
5;
"5"
'5'
5\x0b
\x0b5
5\x00
\x20
\xb2
1_0
00000000000000000000000000000005
18446744073709551621
4294967301
2147483647
65536
999999999999999999999999999999
\xef\xbc\x95
"""),
)

ENCODINGS = _lines(r"""
Transfer-Encoding: chunked
Transfer-Encoding : chunked
Transfer-Encoding:chunked
Transfer-Encoding:\tchunked
Transfer-Encoding: xchunked
Transfer-Encoding: chunked, identity
Transfer-Encoding: identity, chunked
Transfer-Encoding: identity
Transfer-Encoding: CHUNKED
transfer-encoding: chunked
TRANSFER-ENCODING: chunked
Transfer-Encoding: \x0bchunked
Transfer-Encoding: chunked\x0b
Transfer-Encoding: "chunked"
X: y\rTransfer-Encoding: chunked
X: y\nTransfer-Encoding: chunked
Transfer-Encoding:\r\n chunked
Transfer-Encoding\r\n : chunked
\x20Transfer-Encoding: chunked
\tTransfer-Encoding: chunked
Transfer-Encoding: chunked\r\nTransfer-Encoding: identity
Transfer-Encoding
Transfer-Encoding:
Transfer_Encoding: chunked
Transfer-Encoding:\x20
Transfer Encoding: chunked
Transfer-Encoding\x00: chunked
Transfer-\x00Encoding: chunked
Transfer-Encoding: chunked;q=1
Transfer-Encoding: c\r\n\thunked
Foo: bar\r\n\rTransfer-Encoding: chunked
TE: chunked
Transfer-Encoding\xa0: chunked
\xffTransfer-Encoding: chunked
Transfer-Encoding: gzip, chunked
""")

HOSTS = (
    b"",
    *_lines(r"""
\x20
.
..
:80
shop.test
SHOP.TEST
shop.test.
shop.test..
shop.test:80
shop.test:
shop.test:0x50
shop.test:99999
shop.test:999999
shop.test:80:80
shop.test:-1
shop.test:80@admin.test
admin.test@shop.test
shop.test@admin.test
shop.test/admin
shop.test?x
shop.test#x
shop.test\\admin
http://shop.test
shop.test, admin.test
shop.test admin.test
shop.test\tadmin.test
[::1]
[::1]:80
%73hop.test
shop%2etest
sh\xc3\xb6p.test
xn--shp-sna.test
shop_test
-
_
*
*.shop.test
.shop.test
a..shop.test
eu.shop.test
x.eu.shop.test
1.2.3.4
0x7f.1
shop.test\x00
shop.test\x00.admin.test
shop.test\xff
shop.test;x
(shop.test)
shop.test:80\x20
unix:/tmp/x
localhost
"""),
)

TARGETS = (
    b"",
    *_lines(r"""
/
*
?
/?
/?/api
//
//api
///
/api//
/api/.
/api/..
/api/./x
/api/../admin
/..
/.
/...
/.x
/x/..y
/%2e%2e/admin
/api/%2e%2e/admin
/public/..;/admin
/..%3b/admin
/%61pi/..;x
/%40admin
/caf%c3%a9
/api%2fadmin
/%61pi
/api%00
/api%0a
/api%0d%0aX:
/api%
/api%2
/api%zz
/api%u0061
/api;x
/api;/admin
/api;jsessionid=1/..
/api/;/..;/
/api/..;/admin
/api\\..\\admin
\\api
/api#x
/#/api
/api?x#y
/api?/../admin
/api?x=http://a/
/api%3fx
/api%23x
/api%3Bx
/api%25%32%65
/api%252e
/API
/apiary
/api/v2/users
/api\xff
/api\xc3\xa9
/api%c3%a9
/api%ff
/api%C0%AE
/api\x7f
/api\x01
/api\t
/api x
/a%20b
/~x
/a:b
http://shop.test/api
http://admin.test/api
HTTP://SHOP.TEST/api
https://shop.test/api
http://shop.test
http://shop.test?x
http:///api
http://shop.test:80/api
http://shop.test:/api
http://shop.test./api
http://u@shop.test/api
http://u:p@shop.test/api
http://shop.test\\api
http://shop.test@admin.test/api
http://shop.test#/api
http://shop.test//api
http://shop.test/../api
http:/api
http:api
http://[::1]/api
http://shop.test/api?x=/..
ftp://shop.test/api
shop.test:80
shop.test/api
/http://shop.test/api
/api?\xff
/api?\\
/api?%
/api?"
http://*.shop.test/
http://.shop.test/
http://shop.test /api
http://shop.test/api%2e
http://shop.test:080/
http://shop.test:8080/api
"""),
)

LINES = _lines(r"""
GET /api
GET  /api HTTP/1.1
GET /api  HTTP/1.1
GET\t/api\tHTTP/1.1
GET /api HTTP/1.1\x20
\x20GET /api HTTP/1.1
get /api HTTP/1.1
Get /api HTTP/1.1
GET /api HTTP/1.2
GET /api HTTP/1.00
GET /api HTTP/1.10
GET /api HTTP/01.1
GET /api HTTP/2.0
GET /api HTTP/0.9
GET /api http/1.1
GET /api HTTP/1
GET /api HTTP/
GET /api HTTP /1.1
GET /api\x0bHTTP/1.1
GETT /api HTTP/1.1
PRI * HTTP/2.0
OPTIONS * HTTP/1.1
OPTIONS * HTTP/1.0
GET * HTTP/1.1
CONNECT shop.test:80 HTTP/1.1
CONNECT /api HTTP/1.1
PROPFIND /api HTTP/1.1
GET /api HTTP/1.1\r
\r\nGET /api HTTP/1.1
\nGET /api HTTP/1.1
\r\n\r\nGET /api HTTP/1.1
GET /api HTTP/1.1\n
GET\x00 /api HTTP/1.1
GET /api\x00 HTTP/1.1
GET /api HTTP/1.1\x00
SOURCE /api ICE/1.0
GET /api RTSP/1.0
HELP
\x16\x03\x01\x02\x00\x01\x00\x01
QUERY /api HTTP/1.1
HTTP/1.1 200 OK
GET /api HTTP/1.1 HTTP/1.1
GET /api HTTP/1.1,HTTP/1.1
POST /api HTTP/1.0
HEAD /api HTTP/1.0
TRACE /api HTTP/1.1
M-SEARCH * HTTP/1.1
""")

CONNECTIONS = _lines(r"""
Connection: close
Connection: keep-alive
Connection: Keep-Alive, close
Connection: close, keep-alive
Connection: upgrade\r\nUpgrade: websocket
Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__
Upgrade: h2c
Connection: upgrade
Connection: Upgrade\r\nUpgrade: foo/1
Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MTIzNDU2Nzg5MGFiY2RlZg==
Proxy-Connection: keep-alive
Connection: Content-Length
Connection: Transfer-Encoding
Connection: Host
Expect: 100-continue
Expect: 100-Continue
Expect: x
Expect:
Keep-Alive: timeout=5, max=1
Upgrade: \r\nConnection:\x20
Connection: ,close
Connection: clos\xff
Connection:\tclose
""")

FIELDS = (
    *_lines(r"""
Accept : x
Accept\t: x
Accept: a\r\n b
Accept: a\r\n\tContent-Length: 5
Accept: a\nContent-Length: 5
Accept: a\rContent-Length: 5
Accept
:
: x
Acc\x00ept: x
Accept: \x00
Accept: \x01
Accept: \x7f
Accept: \xff\x80
Acc\xffept: x
Acc(ept): x
Accept: a\tb
\x0bAccept: x
Host2: x
XHost: admin.test
X-Forwarded-Host: admin.test
X-Original-URL: /admin
X-Rewrite-URL: /admin
X-HTTP-Method-Override: DELETE
Content-Length : 5
Content_Length: 5
Content-Length\x00: 5
Content-Length\xa0: 5
Content-Lengthx: 5
xContent-Length: 5
Content-Length=5
Content-Encoding: chunked
Trailer: Content-Length
Host : admin.test
Host\t: admin.test
\x20Host: admin.test
Host
Host:
Host: admin.test
host: admin.test
HOST:shop.test
\xc4\xb0ost: x
Ho\xc5\xbft: x
Content-Length: 5\r\nContent-Length: 5
Content-Length: 5\r\nContent-Length: 6
Content-Length: 5\r\nContent-length: 5
Content-Length: 5\nContent-Length: 6
Authority: admin.test
:authority: admin.test
Cookie: a=b; c=d
Range: bytes=0-5
A:
A:\x20
A:b:c
{}: x
"a": b
"""),
    b"A" * 64 + b": x",
    b"A" * 256 + b": x",
    b"A" * 300 + b": x",
    b"X: " + b"y" * 900,
)

BROWSER = _lines(r"""
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0
Accept: text/html,application/xhtml+xml,*/*;q=0.8
Accept-Language: en-US,en;q=0.5
Accept-Encoding: gzip, deflate, br
Connection: keep-alive
Upgrade-Insecure-Requests: 1
DNT: 1
Cache-Control: no-cache
Pragma: no-cache
If-None-Match: "0"
Referer: http://shop.test/a?b
Origin: http://shop.test
Cookie: session=0123456789abcdef
Sec-Fetch-Mode: navigate
Content-Type: application/x-www-form-urlencoded
X-Requested-With: XMLHttpRequest
Authorization: Basic YTpi
""")

PIECES = _lines(r"""
\r\n
\n
\r
\x00
\x20
\t
:
,
;
/
?
#
%
.
..
//
\\
@
\x7f
\x80
\xff
\x0b
\x0c
\x1f
%2e
%2f
0
1
-
+
_
[
]
\r\n\x20
\r\n\t
\r\n\r\n
Host:
Content-Length: 5
""")
"""What a change puts somewhere."""

HEADS = (
    *(_head(b"Content-Length: " + length) for length in LENGTHS),
    *(_head(encoding) for encoding in ENCODINGS),
    *(_head(b"Content-Length: 5", encoding) for encoding in ENCODINGS),
    *(_head(encoding, b"Content-Length: 5") for encoding in ENCODINGS),
    *(_head(b"Host: " + host, host=b"Accept: */*") for host in HOSTS),
    *(_head(line=b"GET " + target + b" HTTP/1.1") for target in TARGETS),
    *(_head(line=line) for line in LINES),
    *(_head(line=b"GET /api HTTP/1.1", host=field) for field in FIELDS),
    *(_head(field) for field in FIELDS),
    *(_head(connection) for connection in CONNECTIONS),
    *(_head(connection, b"Content-Length: 43") for connection in CONNECTIONS),
    *(_head(connection, line=b"GET /api HTTP/1.0") for connection in CONNECTIONS),
    *(_head().replace(CRLF, end) for end in (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\0")),
    *(b"GET /api\r\n", b"GET /api\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(_head() + b"\r\n", _head() + _head(), _head(b"Content-Length: 3") + b"GET"),
)
