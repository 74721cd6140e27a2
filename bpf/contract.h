/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract between the packet path and the control plane: every constant, map key, map value and
 * verdict that C and Python share. Python reads this file's types from the BTF of the compiled objects
 * (rauta/bpf/btf.py), so there is no second copy to keep in step.
 *
 * Conventions: addresses and ports are in network byte order (__be32, __be16); everything else is in the
 * byte order of the host. Enumerations are append-only: a number, once released, keeps its meaning.
 */
#pragma once

/* clang-format off: tables, laid out by hand */

#include <linux/bpf.h>
#include <linux/types.h>

/* ---- limits ------------------------------------------------------------------------------------- */

#define MAX_PATH	256	/* bytes of a path, without the query */
#define MAX_WILDCARD_LABELS 30	/* of a wildcard host, behind "*." */
#define MAX_HOST	256	/* bytes of a host name, without the port; DNS allows 253 */
#define MAX_PREFIX_DEPTH 30	/* segments of a prefix route: one bit of host.shapes each, 0 is "/" */
#define SHAPE_EXACT	0x80000000 /* of host.shapes: the host has exact paths, too */
#define FLOW_WAYS	8	/* entries of a set in the flow table */
#define MAX_BACKENDS	4096
#define MEMBER_WORDS	64	/* of a cluster in the map members: MAX_BACKENDS / 64 */
#define FALLBACK_BACKEND 4095	/* index of the fallback among the backends: the last */
#define MAX_CLUSTERS	1024
#define MAX_ROUTES	4194303	/* of all VIPs, see path.route */
#define MAX_VIPS	64
#define MAGLEV_SLOTS	65537	/* prime, as the paper wants it (Eisenbud et al., NSDI '16, section 3.4) */
#define MAGLEV_PACKED	16385	/* map entries of four slots each: ceil(MAGLEV_SLOTS / 4) */
#define NO_BACKEND	0xffff	/* the slot of an empty cluster */

/* ---- wire --------------------------------------------------------------------------------------- */

#define ROUTER_MSS	1416	/* 1500 - 20 (outer IPv4) - 24 (struct shim) - 40 (IPv4 + TCP) */
#define ROUTER_WSCALE	7	/* what the SYN-ACK offers, and the backend's socket then uses */
#define ROUTER_WINDOW	29200	/* of the SYN-ACK, unscaled (RFC 7323, 2.2); a backend's kernel grants about 64 K */
#define PATH_MTU	1500	/* an encapsulated packet never exceeds it */

/*
 * The outer IPv4 header's identification. Outer packets set DF, so the field is free (RFC 6864, 4.1).
 *
 *   15     14         13                 3   2      1        0
 *  | cookie's bits 31..19                 | HEAD | REQUEST |  0  |
 *  | new | HEAD | age of the handshake, ms                 |  1  |  carries the first request
 *
 * Hints, never a permission: the cookie is that, and the tag of an order (struct shim). The lowest bit saves the agent
 * a cookie check on every other packet. The others say of a later packet which connection the router takes it to be of,
 * so that one which comes before its first request does not count as one of the tuple's last connection, and whether a
 * request starts in it, for the agent to follow its answer (follow.h); of a first request, how long ago the router
 * answered the SYN (age.h), for the backend's kernel to know the round trip, and whether the router has routed it as a
 * new connection's, knowing of no earlier one (first.h). HEAD: the method, whose answers have no body. An order's says
 * something else: see struct label.
 */
#define OUTER_ID_OPENS	0x0001	/* carries the first request of a connection (or its retransmission) */
#define OUTER_ID_REQUEST 0x0002	/* a later request starts with the payload */
#define OUTER_ID_HEAD	0x0004	/* and its method is HEAD */
#define OUTER_ID_BEYOND	0x0004	/* without OUTER_ID_REQUEST: behind a request that is being moved, only for whom it moves to */
#define OUTER_ID_CONNECTION 0xfff8
#define outer_id(cookie) ((__u16)((cookie) >> 16 & OUTER_ID_CONNECTION))
#define OUTER_ID_NEW	0x8000
#define OUTER_ID_FIRST_HEAD 0x4000
#define outer_id_opening(age) ((__u16)((age) << 1 | OUTER_ID_OPENS))
#define AGE_LONG	0x1fff	/* that long, or longer; 0: not known */

struct tuple {			/* client -> server, as in the packets the client sends */
	__be32 client;
	__be32 server;
	__be16 client_port;
	__be16 server_port;
};

/* ---- moves: a connection goes to another backend at a request (docs/handover.md) ----------------- */

#define SHIM_PROTOCOL	253	/* of the outer header, where a shim stands between it and the packet (RFC 3692, 2.1) */
#define SHIM_VERSION	1
#define SHIM_LIFETIME	60	/* seconds that an order is good for; the hosts' clocks agree at least so well */

enum shim_kind {		/* struct ask has the other numbers: both are under the same keys */
	SHIM_MOVE = 16,		/* router to the old backend: hand the connection over, with the request that is in here */
	SHIM_ADOPT = 17,	/* old backend, or router if that one is down, to the new one: go on with the connection, with
				 * this request */
	SHIM_MOVED = 18,	/* old backend to the router: it has been handed over */
	SHIM_LABEL = 19,	/* struct label: the packet is an ordinary one */
};

enum shim_flags {
	SHIM_EPOCH = 1,		/* which of the two live keys */
	SHIM_HEAD = 2,		/* the request's method is HEAD */
};

struct shim {			/* between the outer IPv4 header and the packet */
	__u8 version;		/* SHIM_VERSION */
	__u8 kind;		/* enum shim_kind */
	__u8 flags;		/* enum shim_flags */
	__u8 options;		/* ADOPT: of the client's SYN, as the low byte of a cookie has them */
	__u16 time;		/* TAI, seconds, modulo 2^16 */
	__u16 trip;		/* ADOPT: the round trip to the client, ms; 0: not known */
	__u32 first;		/* MOVE: address of the new backend (__be32). ADOPT: the old socket's clock of timestamps.
				 * MOVED: sequence number of the request that moved */
	__u32 second;		/* MOVE: the connection's cookie, as the old backend knows it; once that has said that it is
				 * done, as the new one does. ADOPT: that of its handshake.
				 * MOVED: what the request acknowledged */
	__u64 tag;		/* SipHash-2-4, under ask_keys' key of the epoch, of the shim up to here and struct bond */
} __attribute__((packed, aligned(4))); /* it stands behind 20 bytes */

/*
 * A router that is told to (constant `labels`) says to agents which route a request has found. Packets in which one
 * starts (OUTER_ID_OPENS or OUTER_ID_REQUEST, retransmissions, too) have a label between the outer IPv4 header and the
 * packet, unless they are for the fallback, or would exceed PATH_MTU by it. An order has none: its outer
 * identification, which says nothing else, is the route's number + 1, or 0 if that is not known or over 65,535; the old
 * backend passes it on as it is.
 *
 * Labels are for figures alone (struct route_figures). They have no tag, and whoever can send from the routers' prefix
 * can write what he likes: nothing is decided by them, and a number beyond the agent's routes counts as not known.
 * Agents take packets with and without.
 */
struct label {
	__u8 version;		/* SHIM_VERSION */
	__u8 kind;		/* SHIM_LABEL, where a shim has its own kind */
	__u16 reserved;
	__u32 route;		/* its number, as in struct path, from 0 */
} __attribute__((packed, aligned(4)));

struct bond {			/* what a shim is about, and between whom */
	struct tuple tuple;	/* client -> VIP */
	__u32 seq;		/* of the packet inside; of a MOVED, what it says */
	__u32 ack;
	__be32 from;		/* outer addresses */
	__be32 to;
	__u32 reserved;
};

/* ---- cookie: the sequence number of the SYN-ACK -------------------------------------------------
 *
 *   31                      8 7      4    3    2   1   0
 *  |  24 bits of SipHash-2-4 | wscale | sack | mss | epoch |
 */
#define COOKIE_EPOCH	0x01	/* which of the two live keys */
#define COOKIE_MSS_SHIFT 1	/* 2 bits: index into COOKIE_MSS_VALUES */
#define COOKIE_SACK	0x08
#define COOKIE_WSCALE_SHIFT 4	/* 4 bits: the client's shift 0..14, or COOKIE_NO_WSCALE */
#define COOKIE_NO_WSCALE 15
#define COOKIE_OPTIONS	0xff	/* the low byte: everything but the hash */
#define COOKIE_MSS_VALUES { 536, 1220, 1400, 1460 } /* the largest one that the client's MSS allows */

/* Written while programs read it: one write changes either the key that is not in use, or the epoch alone
 * (rauta/keyslots.py). docs/secrets.md says which keys are live when. */
struct cookie_keys {		/* map cookie_keys, one entry; on routers and agents alike */
	__u64 key[2][2];	/* SipHash-2-4 keys k0, k1 by epoch */
	__u32 epoch;		/* the key that new cookies use: 0 or 1 */
	__u32 reserved;
};

/* ---- methods ------------------------------------------------------------------------------------ */

enum method {
	METHOD_ANY = 0,		/* in routes only: whatever the request says */
	METHOD_GET, METHOD_HEAD, METHOD_POST, METHOD_PUT, METHOD_DELETE,
	METHOD_CONNECT, METHOD_OPTIONS, METHOD_TRACE, METHOD_PATCH,
	METHOD_COUNT,
};

/* ---- router: VIPs and routes -------------------------------------------------------------------- */

struct vip_key {		/* map vips; port 0 says "this address is a VIP" (fragments have no port) */
	__be32 address;
	__be16 port;
	__u16 reserved;
};

enum no_route_answer {		/* what a request gets that no route names */
	NO_ROUTE_404 = 0,
	NO_ROUTE_RESET = 1,
	NO_ROUTE_FALLBACK = 2,
};

struct vip {
	__u32 id;		/* 1.. */
	__u32 names;		/* whose host names these are: host_key.vip. Another number: another set of routes */
	__u32 any_host;		/* id of the routes without a host, 0: there are none */
	__u32 any_host_shapes;	/* like host.shapes */
	__u32 no_route;		/* enum no_route_answer */
	__u32 wildcards;	/* bit n: there is a host "*." with n labels behind it */
	__u32 fallback;		/* not 0: there is one, the backend FALLBACK_BACKEND */
	__u32 strict;		/* not 0: a path of its routes has bytes that can be spelled in another way, see http.h */
};

enum host_kind {
	HOST_EXACT = 0,		/* "shop.test" */
	HOST_WILDCARD = 1,	/* "*.shop.test", as the name ".shop.test": names that end so, with anything in front */
};

struct host_key {		/* map hosts: host names of a VIP */
	__u64 hash;		/* words_hash() of the lower-cased name, see below */
	__u32 names;		/* of the VIP */
	__u16 length;		/* of the name, bytes */
	__u16 kind;		/* enum host_kind */
};

struct host {
	__u32 id;		/* 1.. unique over all VIPs; any_host ids are drawn from the same range */
	__u32 shapes;		/* bit d: a prefix route of this host has d segments; SHAPE_EXACT: it has exact paths.
				 * What no route has is not looked up. */
	char name[MAX_HOST];	/* lower case, zero-padded: compared after the hash matched */
};

enum path_kind { PATH_EXACT = 0, PATH_PREFIX = 1 };

struct path_key {		/* map paths */
	__u64 hash;		/* path_hash() */
	__u32 host;		/* host.id or vip.any_host */
	__u16 length;		/* bytes; the prefix "/" has length 0, other prefixes no trailing slash */
	__u16 kind;		/* enum path_kind */
};

/*
 * What a path leads to, by enum method; 0: no route for this method here.
 *
 *   31                 10 9            0
 *  | route's number + 1  | cluster index |
 *
 * Routes are numbered from 0 over all VIPs as they stand in the configuration, so whoever has found one knows
 * its counter and its cluster.
 */
#define ROUTE_CLUSTER_BITS 10
#define route_cluster(route) ((route) & ((1 << ROUTE_CLUSTER_BITS) - 1))
#define route_number(route) (((route) >> ROUTE_CLUSTER_BITS) - 1)

struct path {
	__u32 route[METHOD_COUNT];
	char path[MAX_PATH];	/* zero-padded: compared after the hash matched */
};

/*
 * The keyed hash of names and paths, little-endian 64-bit words w:
 *     mix(h, w):  h = (h ^ w) * 0x9e3779b97f4a7c15;  h ^= h >> 29
 * words_hash(name):  h = route_key;  mix in the name's words of 8 bytes, the last one zero-padded
 *                    (a name of 8k bytes has k words).
 * path_hash(path):   h = route_key;  every segment "/seg" mixes in the words of `seg` followed by one '/',
 *                    zero-padded: "abc" is the word "abc/", "abcdefgh" the words "abcdefgh" and "/",
 *                    "" is "/". So the hash of a path's first d segments is a by-product of hashing the
 *                    whole path, and the prefix "/" has the hash route_key. An exact path with a trailing
 *                    slash has an empty last segment.
 * Collisions cost nothing but a miss: what was matched is compared byte for byte.
 */

/* ---- router: clusters and backends -------------------------------------------------------------- */

struct maglev_slots {		/* inner maps of `clusters`, an array of maps by cluster index: slot s is
				 * backend[s & 3] of entry s >> 2 */
	__u16 backend[4];
};

enum backend_down {
	BACKEND_UP = 0,
	BACKEND_DOWN = 1,
	BACKEND_GIVEN_UP = 2,	/* for so long that whoever has not asked again may be waiting for the rest of an answer */
};

struct backend {		/* map backends, by index */
	__be32 address;		/* of the host, where encapsulated packets go; 0: no such backend */
	__u8 next_hop[6];	/* MAC address */
	__u8 source[6];		/* MAC address of the interface that leads there, if it is not 0 */
	__u32 interface;	/* its index; 0: packets leave through the one that they came in on */
	__u32 down;		/* enum backend_down: its host does not answer; connections go on elsewhere at their next request */
};

/*
 * The interface of a backend that is this very host: the fallback, an ordinary proxy for what XDP does not
 * route. Its packets are encapsulated as all others are and passed up, to an agent on the same interface.
 */
#define BACKEND_LOCAL	0xffffffff

/* ---- router: flows ------------------------------------------------------------------------------ */

/*
 * flow_hash(tuple): h = flow_key;  mix(h, client | server << 32);  mix(h, client_port | server_port << 16), the
 * fields as they stand in memory (network byte order read as little-endian integers).
 * Maglev slot = (h >> 32) * MAGLEV_SLOTS >> 32. Outer source = prefix | (h & ~mask), see encap.h.
 */

enum flow_state {
	FLOW_OPEN = 1,
	FLOW_CLOSING = 2,	/* the client's FIN or RST was seen, exactly in sequence */
	FLOW_ANSWERED = 3,	/* the router itself answered the first request and closed (404 ...) */
	FLOW_RECOVERED = 4,	/* the entry was lost; what is known comes from the backend's agent (recovery.h) */
	FLOW_FALLBACK = 5,	/* the fallback has the connection: nothing in it is read any more */
	FLOW_MOVING = 6,	/* the newest request goes to another backend; the old one has not said yet that it has
				 * handed the connection over */
};

enum first_kind {
	FIRST_NOT = 0,		/* the backend's socket is older than the newest request */
	FIRST_OPENS = 1,	/* the newest request is the connection's first: its cookie opens the socket */
	FIRST_MOVED = 2,	/* it has moved the connection: an order to the mover opens the socket */
};

enum syn_seen {			/* whose flow.syn_isn is */
	SYN_NONE = 0,
	SYN_NEWEST = 1,		/* of the newest SYN on this tuple */
	SYN_MOVED = 2,		/* of the SYN of this very connection, which has moved since; no newer one was seen */
};

#define MAX_ORDERS	9	/* repeated orders before the router gives up: about 100 s of retransmissions */

struct flow {			/* only ever inserted after a valid cookie, or because an agent has the socket */
	struct tuple tuple;
	__u32 isn;		/* the connection's identity: both initial sequence numbers, the client's ... */
	__u32 cookie;		/* ... and the server's, of which only 24 bits are the hash's. Once it has moved: the numbers
				 * before the request that moved it, with which its backend's socket began */
	__u32 request_seq;	/* first byte of the newest request */
	__u32 next_request_seq;	/* where the next one must start: after the head and the body */
	__u32 request_ack;	/* the client's acknowledgement in the newest request */
	__u32 syn_isn;		/* what syn_seen says */
	__u16 head_length;	/* of the newest request, bytes */
	__u16 backend;		/* index; NO_BACKEND when the router answered the first request itself */
	__u32 cluster;		/* index; the newest request's. If the router labels requests, all of the route's word in
				 * struct path: above it the route's number + 1 */
	__u8 state;		/* enum flow_state */
	__u8 syn_seen;		/* enum syn_seen */
	__u8 first;		/* enum first_kind: what request_seq is */
	__u8 answer;		/* enum verdict, if the router answered: what it said; FLOW_MOVING: orders repeated */
	__u64 digest;		/* head_digest() of the newest request */
	__u32 body_seq;		/* where the body of the request before the newest began */
	__u16 mover;		/* first is FIRST_MOVED: index of the backend that hands, or has handed, the connection over */
	__u8 is_head;		/* the newest request's method is HEAD */
	__u8 options;		/* of the client's SYN, as the low byte of a cookie has them; one cache line ends here */
} __attribute__((aligned(8))); /* copied in words of eight bytes */

#define DIGEST_KEYS	514	/* two for each word of a head of up to 2,048 bytes, and two more */

/*
 * head_digest(head), with m[] = digest_keys and the head's little-endian words w[i] of 8 bytes, the last one
 * zero-padded:
 *     sum(k) = sum over i of (m[2i + k] + (w[i] & 0xffffffff)) * (m[2i + k + 1] + (w[i] >> 32)), modulo 2^64
 *     digest = sum(0) >> 32 | sum(2) & 0xffffffff00000000
 */

/*
 * Map flows: an array of sets; set number = (flow_hash & 0xffffffff) * flow_sets >> 32,
 * tag = (flow_hash >> 24 & 0xffffffff) | 1. Why not the kernel's LRU hash: see flow.h.
 */
struct flow_set {
	__u32 lock;		/* not 0: somebody writes; readers do not look at it */
	__u8 clock;		/* twice the number of entries that the set has taken in, modulo 256 */
	__u8 reserved[3];
	__u32 zero;		/* always 0, which the verifier does not know */
	__u8 used[FLOW_WAYS];	/* what the clock said when the way was last used; one more for taking the entry in */
	__u32 padding[3];
	__u32 tag[FLOW_WAYS];	/* 0: empty */
	struct flow flow[FLOW_WAYS];
};

/* ---- recovery: flows that lost their entry (docs/recovery.md) ----------------------------------- */

struct lost_segment {		/* ring buffer `lost`: nobody knows the connection */
	struct tuple tuple;
	__u32 seq;
	__u32 ack;
};

#define ASK_VERSION	1
#define ASK_SEQ_REACH	(1U << 23) /* no client may send further: 65,535 << ROUTER_WSCALE */
#define ASK_ACK_REACH	(1U << 30) /* no backend may: the largest window there is (RFC 7323, 2.3) */

enum ask_kind {
	ASK_WHOSE = 1,		/* router to agent: whose is this connection? */
	ASK_MINE = 2,		/* and back */
	ASK_NOT_MINE = 3,
	ASK_PING = 4,		/* router to agent: are you there, and what time is it? The tuple is zero */
	ASK_PONG = 5,		/* and back */
};

struct ask {			/* a UDP payload; the answer has the same size, so that nothing is amplified */
	__u8 version;		/* ASK_VERSION */
	__u8 kind;		/* enum ask_kind */
	__u8 epoch;		/* which of the two live keys */
	__u8 reserved[5];
	__u64 nonce;		/* the answer has the question's */
	struct tuple tuple;
	__u32 seq;		/* of the segment that was lost */
	__u32 ack;
	__u32 isn;		/* in ASK_MINE the connection's identity, as in struct flow; in ASK_PONG TAI, seconds ... */
	__u32 cookie;		/* ... and nanoseconds of the next; else 0 */
	__u32 next;		/* in ASK_MINE the first byte from the client that the backend has not got, else 0 */
	__u64 tag;
};

/*
 * tag = SipHash-2-4, under ask_keys' key of the epoch, of 64 bytes: the ask up to its tag; struct tuple of the
 * router's own address and port (client) and the agent's (server), in questions and answers alike; four zero bytes.
 * All in the hosts' byte order, which routers and agents share as they do for cookies.
 */
struct ask_keys {		/* map ask_keys, one entry; on routers and agents alike; derived from the cookie keys */
	__u64 key[2][2];	/* k0, k1 by epoch */
};

struct ask_call {		/* argument of the router's programs rauta_seal_ask and rauta_take_answer */
	struct tuple between;	/* the router's own address and port (client), the agent's (server) */
	__u32 backend;		/* index of the one that is asked */
	struct ask ask;
};

enum answer_taken {		/* what rauta_take_answer returns */
	ANSWER_REFUSED = 0,	/* wrong version, kind or tag */
	ANSWER_NOT_MINE = 1,
	ANSWER_RECOVERED = 2,	/* the flow has an entry again */
	ANSWER_LATE = 3,	/* it has one already: left as it is */
};

/* ---- agent -------------------------------------------------------------------------------------- */

struct service {		/* map services, by struct vip_key: what this host serves */
	__be32 address;		/* local address and port of the server */
	__be16 port;
	__u16 reserved;
};

enum mapping_state {
	MAPPING_OPEN = 1,	/* egress has shown a segment of the socket */
	MAPPING_CLEARING = 2,	/* an old socket is being reset; segments go round until it is gone */
	MAPPING_OPENING = 3,	/* the first request was given to the listener; a full accept queue may yet
				 * have dropped it */
	MAPPING_MOVED = 4,	/* handed over to another backend: what the socket still sends is dropped */
};

struct mapping {		/* map mappings (LRU, by struct tuple with the LOCAL address and port as server),
				 * and socket storage `connections` */
	__be32 vip;
	__be16 vip_port;
	__u16 state;		/* enum mapping_state */
	__u32 isn;		/* the connection's identity, as in struct flow */
	__u32 cookie;
	__u16 age;		/* of the handshake, as the router has said; for opening only */
	__u8 is_new;		/* the packet has OUTER_ID_NEW; of the packet only */
	__u8 moved;		/* came here from another backend */
	__be32 target;		/* MAPPING_MOVED: address of the backend that has it now */
	__u64 first;		/* digest of the connection's first data: like head_digest(), of up to 2,048 bytes; 0: none */

	/* Answers (follow.h). MAPPING_MOVED: `request` and `sent` are the numbers of the request that moved. */
	__u64 left;		/* bytes of the present answer's body that the server has not sent yet */
	__u32 request;		/* sequence number of the newest request */
	__u32 sent;		/* of the first byte that the server has not sent yet */
	__u32 heads;		/* bit n % 32: request number n is a HEAD */
	__u8 asked;		/* requests, modulo 256 */
	__u8 answered;		/* answers that have been sent to the end, modulo 256 */
	__u8 pinned;		/* not 0: the answers cannot be followed, and the connection never moves */
	__u8 options;		/* of the client's SYN, as the low byte of a cookie has them */
	__u32 clock;		/* moved here: the old socket's clock of timestamps, then; 0: not moved, or no timestamps */
	__u32 origin;		/* cookie of the connection's handshake, wherever it has been since */

	/* Figures (figures.h); nothing is decided by them. */
	__u64 asked_at;		/* CLOCK_MONOTONIC, ns: when the newest request came; 0: the head of its answer has left */
	__u32 route;		/* that request's number, as in struct label, + 1; 0: not known */
	__u32 reserved;
};

/*
 * Which connections have had their socket. Map consumed: an array of sets of fingerprints. A connection's is the
 * SipHash-2-4, under consumed_key, of the 20 bytes client, server, client_port, server_port (of the LOCAL tuple), isn,
 * cookie; 0 becomes 1. Its set's number = (fingerprint >> 32) * consumed_sets >> 32. First in, first out.
 */
#define CONSUMED_SETS	131072	/* 8 MiB, 917,504 connections: docs/http.md says how long that lasts */
#define CONSUMED_WAYS	7	/* with the hand one cache line */

struct consumed_set {
	__u32 hand;		/* counts up: the next fingerprint goes to place hand % CONSUMED_WAYS */
	__u32 reserved;
	__u64 fingerprint[CONSUMED_WAYS]; /* 0: none yet */
};

#define MARK_MAGIC	0x52410000 /* "RA": skb->mark of packets the agent sends round through ingress again */
#define MARK_MAGIC_MASK	0xffff0000
#define MARK_OPENS	0x00000200 /* a validated first request */
#define MARK_RESET	0x00000800 /* an order whose connection has moved: resets the old socket */
#define MARK_LATER	0x00000400 /* a later segment that waits for the old socket's end */
#define MARK_ATTEMPTS	0x000000ff /* how often it went round */
#define MAX_ATTEMPTS	3

#define LONGEST_TRIP_MS	333	/* see agent's open.h: what is not more is taken for a round trip */

/* ---- verdicts ----------------------------------------------------------------------------------- */

/*
 * One counter each for every VIP (map verdicts). Every packet that enters a program leaves it through exactly one.
 * The range says what happens to the packet; within a range the list is append-only.
 */
#define VERDICT_DROP	16	/* router: below, the packet is passed to the kernel */
#define VERDICT_TX	64	/* router: below, it is dropped; from here on, it is sent out by XDP_TX */
#define VERDICT_ENCAPSULATED 112 /* router: from here on, to a backend, by XDP_TX or XDP_REDIRECT */
#define VERDICT_AGENT	128	/* from here on, the agent's: pass, drop, round again, out again, egress */
#define VERDICT_AGENT_DROP 144
#define VERDICT_AGENT_AGAIN 176
#define VERDICT_AGENT_OUT 184 /* sent out again */
#define VERDICT_AGENT_EGRESS 192
#define VERDICT_FALLBACK 224	/* router: from here on, to the fallback: encapsulated and passed to the kernel */

enum verdict {
	/* Router: none of its business, to the kernel */
	PASS_NOT_IPV4 = 0,
	PASS_TRUNCATED = 1,		/* ends inside the IPv4 header or before the TCP ports */
	PASS_NOT_TCP = 2,
	PASS_NOT_VIP = 3,

	/* Router: to a VIP, dropped */
	DROP_FRAGMENT = VERDICT_DROP,
	DROP_IP_OPTIONS,
	DROP_MALFORMED,			/* lengths of IPv4 header, TCP header and packet contradict each other */
	DROP_FLAGS,			/* TCP flags that no client sends: no ACK, SYN+ACK, SYN+FIN, SYN+RST, URG */
	DROP_HANDSHAKE_ACK,		/* the bare third packet of the handshake: nothing to do yet */
	DROP_NO_FLOW,			/* later packet of a connection that has no entry */
	DROP_OUT_OF_ORDER,		/* starts after the place where the next request must start */
	DROP_TOO_BIG,			/* would exceed PATH_MTU once encapsulated, and may be fragmented (no DF); or with an order
					 * in front, which no client needs to be told: ROUTER_MSS leaves room for it */
	DROP_NO_BACKEND,		/* the flow's backend is no longer configured */
	DROP_NO_ROOM,			/* the packet could not be read or grown: a driver without headroom. Or its set of the
					 * flow table stayed locked by another CPU */
	DROP_ANSWERED,			/* late packet of a connection that the router answered itself */
	DROP_CHANGED,			/* bytes of a request head again, but not those that were routed, or not all of them;
					 * on a recovered flow any bytes again: nothing is known to compare them with */
	DROP_PIPELINED,			/* a request before the first byte of the answer to the one before it is acknowledged */
	DROP_REPLAYED,			/* the first request of a connection before the one that the entry is about */
	DROP_ASKED = 30,		/* like DROP_NO_FLOW, but the backends are being asked about it */
	DROP_ICMP,			/* an ICMP error, but no "fragmentation needed" about a packet of a flow */
	DROP_NOTICE = 32,		/* an agent's word that a connection has moved: noted */
	DROP_DOWN = 34,			/* what needs no answer, for a backend that is down */
	DROP_NOTICE_FORGED = 33,	/* the same by nobody who may say so, or too old */
	DROP_PAUSED = 35,		/* the flow table is just going over to another one (pause.h): it comes again */

	/* Router: answered by XDP_TX. What is said to be an HTTP status is one in answer to a connection's first
	 * request. A later one gets a reset, counted as the same reason. */
	TX_SYN_ACK = VERDICT_TX,
	TX_KEEPALIVE,			/* probe before the first request: acknowledged */
	TX_CLOSE,			/* FIN before the first request, or after the router's own answer */
	TX_RESET_COOKIE,		/* a request whose cookie is forged, stale or somebody else's */
	TX_RESET_NOT_HTTP,		/* does not start with an HTTP/1 method */
	TX_NO_ROUTE,			/* 404 */
	TX_RESET_NO_ROUTE,
	TX_BAD_REQUEST,			/* 400: malformed or ambiguous, see http.h */
	TX_LENGTH_REQUIRED,		/* 411: Transfer-Encoding, the end of the body could not be followed */
	TX_HEAD_TOO_LARGE,		/* 431: the head does not end in its packet, or has over 127 fields */
	TX_URI_TOO_LONG,		/* 414: path over MAX_PATH */
	TX_BODY_TOO_LARGE,		/* 413: head and body over 2^31 - 1, more than sequence numbers compare */
	TX_UNAVAILABLE,			/* 503: the route's cluster has no backend with weight */
	TX_RESET_PIPELINED,		/* bytes of the next request in the same segment */
	TX_RESET_ROUTE_CHANGED,		/* a later request on the connection is for the fallback, or for no route */
	TX_DISCARDED,			/* data after the router's own answer: acknowledged, and thrown away */
	TX_NOT_IMPLEMENTED,		/* 501: a request to go on with another protocol (Upgrade, CONNECT) */
	TX_TOO_BIG = 81,		/* ICMP "fragmentation needed" to the client, about its packet (XDP_REDIRECT where the
					 * client is behind another interface) */
	TX_RESET_RECOVERED = 82,	/* new data on a recovered flow: nobody knows where its next request starts */
	TX_RESET_DOWN = 84,		/* who waits for an answer of a backend that is down, or sends it the rest of a request; and
				 * once it is given up everybody who has not asked again */
	TX_RESET_UNMOVED = 83,		/* a request for another backend, after MAX_ORDERS repeated orders */

	/* Router: encapsulated, XDP_TX, or XDP_REDIRECT to another interface */
	ROUTED_FIRST = VERDICT_ENCAPSULATED, /* the first request of a connection */
	ROUTED_NEXT,			/* a later request on the same connection */
	FORWARDED,			/* body, acknowledgement */
	FORWARDED_AGAIN,		/* retransmission of the newest request */
	FORWARDED_CLOSE,		/* FIN or RST */
	FORWARDED_ICMP = 117,		/* ICMP "fragmentation needed" about a packet of the flow's backend */
	ROUTED_MOVED = 118,		/* a later request that another backend gets: an order to the one before */
	FORWARDED_ORDER = 119,		/* a retransmission of that request: the order again */
	FORWARDED_MOVING = 120,		/* what else comes meanwhile: to the one before, who hands it on */
	FORWARDED_EARLY = 121,		/* the next request, before the one before has said that the connection moved: for
					 * him to say it again. It comes again by itself */

	/* Agent, ingress: passed to the kernel */
	AGENT_PASS = VERDICT_AGENT,	/* not encapsulated: none of its business */
	AGENT_PASS_SYN,			/* a direct SYN: its tuple's stale mapping, if any, is gone */
	AGENT_OPENED,			/* socket created from this packet */
	AGENT_OPENED_ALREADY,		/* retransmitted first request, to the socket it opened */
	AGENT_DELIVERED,		/* later packet, translated */
	AGENT_NO_LISTENER,		/* first request, nobody listens: the kernel refuses it with an RST */
	AGENT_CLEARING,			/* turned into a reset for an old socket; a clone goes round behind it */
	AGENT_ENDING = 136,		/* turned into a reset for the connection's own socket: the router, which has lost its
					 * entry, has routed something else than the socket has had (first.h) */
	AGENT_ADOPTED = 137,		/* socket created from a request that moved here */
	AGENT_MOVED = 138,		/* turned into a reset for the socket of a connection that has moved */
	AGENT_UNMOVABLE = 139,		/* turned into a reset for a socket whose answers could not be followed, so that its
					 * connection could not move */
	AGENT_CLOSED = 140,		/* an order, but the server has closed the connection: the kernel says so */
	AGENT_DELIVERED_ICMP = 135,	/* "fragmentation needed" about what the server sent, translated */

	/* Agent, ingress: dropped */
	AGENT_DROP_SOURCE = VERDICT_AGENT_DROP, /* encapsulated, but not by a configured router */
	AGENT_DROP_MALFORMED,
	AGENT_DROP_NOT_SERVED,		/* the inner destination is no VIP of this host, or the outer one another host */
	AGENT_DROP_COOKIE,
	AGENT_DROP_UNOPENED,		/* later packet on a tuple whose first request is not here yet */
	AGENT_DROP_REFUSED,		/* the kernel refused the socket (sysctl, options) */
	AGENT_DROP_CONFLICT,		/* a live socket that is not the agent's, or another VIP's, holds the tuple */
	AGENT_DROP_ATTEMPTS,		/* the old socket is still there after MAX_ATTEMPTS */
	AGENT_DROP_REPLAYED = 152,	/* the first request of a connection that has had its socket already */
	AGENT_DROP_MPTCP = 153,		/* the server listens with MPTCP, and the kernel makes it no socket from a cookie */
	AGENT_DROP_ICMP = 154,		/* an ICMP error that is malformed, no "fragmentation needed", or of no connection here */
	AGENT_DROP_ORDER = 156,		/* an order by nobody who may give it, or too old, or about no connection here */
	AGENT_DROP_BUSY = 157,		/* an order, or what follows it, before its connection can move: it comes again */
	AGENT_DROP_EARLY = 158,		/* a request that has overtaken what is before it */
	AGENT_DROP_PAUSED = 159,	/* the state of connections is just going over to another agent (carry.h): it comes again */
	AGENT_DROP_ASK = 155,		/* a question by nobody who may ask, or about a tuple that is just opening */

	/* Agent, ingress: round through ingress once more */
	AGENT_WAITING = VERDICT_AGENT_AGAIN, /* later segment of a connection whose old socket is being cleared */

	/* Agent, ingress: turned round and sent out again */
	AGENT_ASK_ANSWERED = VERDICT_AGENT_OUT, /* a router's question whose a connection is */
	AGENT_ORDERED = 185,		/* an order carried out: the request, to the new backend */
	AGENT_ORDERED_AGAIN = 186,	/* the same order again */
	AGENT_HANDED_ON = 187,		/* a later packet of a connection that has moved */

	/* Agent, egress */
	AGENT_EGRESS_PASS = VERDICT_AGENT_EGRESS,
	AGENT_EGRESS_TRANSLATED,
	AGENT_EGRESS_DROP,		/* translation failed: the local address must not leak */
	AGENT_EGRESS_MUTED,		/* of a connection that has moved to another backend */
	AGENT_EGRESS_PAUSED,		/* like AGENT_DROP_PAUSED */

	/* Router: a connection that the fallback gets, by what its first data is ... */
	FALLBACK_NOT_HTTP = VERDICT_FALLBACK, /* does not start with an HTTP/1 method */
	FALLBACK_TLS,			/* a TLS handshake */
	FALLBACK_HTTP2,			/* the HTTP/2 connection preface */
	FALLBACK_HEAD,			/* the head does not end in its packet, or has over 127 fields */
	FALLBACK_PATH,			/* path over MAX_PATH */
	FALLBACK_AMBIGUOUS,		/* malformed or ambiguous, see http.h */
	FALLBACK_ENCODED,		/* Transfer-Encoding, the end of the body could not be followed */
	FALLBACK_BODY,			/* head and body over 2^31 - 1 bytes */
	FALLBACK_UPGRADE,		/* a request to go on with another protocol */
	FALLBACK_PIPELINED,		/* bytes of the next request in the same segment */
	FALLBACK_NO_ROUTE,		/* no route, where the VIP says so */

	/* ... and its later packets */
	FALLBACK_AGAIN,			/* the first data again */
	FALLBACK_FORWARDED,
	FALLBACK_CLOSE,			/* FIN or RST */

	VERDICT_COUNT = 256,
};

/* ---- observation -------------------------------------------------------------------------------- */

struct verdict_counts {		/* map verdicts, per CPU, by vip.id. 0: what is passed, and fragments, which name no port;
				 * all of the agent */
	__u64 packets[VERDICT_COUNT]; /* by enum verdict */
};

enum verdict_class {		/* what becomes of a packet, by the range of its verdict */
	CLASS_PASSED = 0,
	CLASS_DROPPED = 1,
	CLASS_ANSWERED = 2,
	CLASS_ROUTED = 3,	/* a request, to a backend */
	CLASS_FORWARDED = 4,	/* to a backend, anything else */
	CLASS_FALLBACK = 5,	/* to the proxy on this host */
	CLASS_COUNT,
};

/*
 * Times of the program, in ns, in four buckets an octave: bucket 4 * (e - LATENCY_FIRST_OCTAVE) + s counts those of
 * (4 + s) << (e - 2) and more that are less than the next one's least. The first also counts shorter ones, the last
 * also longer ones.
 */
#define LATENCY_FIRST_OCTAVE 4	/* from 16 ns */
#define LATENCY_OCTAVES	20	/* to 16.8 ms */
#define LATENCY_BUCKETS	80	/* 4 * LATENCY_OCTAVES */

struct latency {		/* map latency, per CPU, by enum verdict_class */
	__u64 sum;		/* of all times, ns */
	__u64 bucket[LATENCY_BUCKETS];
};

/*
 * Times from a request to its answer: bucket b counts those that are less than FIRST_BYTE_UNIT << b ns, and not less than
 * half of that; the first also counts shorter ones, the last also longer ones.
 */
#define FIRST_BYTE_UNIT	64000	/* ns */
#define FIRST_BYTE_BUCKETS 21	/* the last one begins at 33.6 s */
#define STATUS_CLASSES	6

struct route_figures {		/* the agent's map figures, per CPU, by the route's number + 1; 0: it is not known */
	__u64 requests;		/* that have come, retransmissions apart */
	__u64 statuses[STATUS_CLASSES]; /* answers by the first digit of their status, interim ones, too; 0: it could not
				 * be read, but an answer has begun */
	__u64 sum;		/* of all times that the buckets count, ns */
	__u64 bucket[FIRST_BYTE_BUCKETS]; /* from a request's first segment to the first byte of its answer; interim
				 * answers are none */
};

#define NO_ROUTE_NUMBER	0xffffffff

enum event_reason {		/* bits of event.reasons: whom a packet is told */
	EVENT_SAMPLED = 1,	/* everybody: it had its turn, and the rate allowed it */
	EVENT_FOLLOWED = 2,	/* who follows its client */
};

struct event {			/* map events, a ring buffer: what became of one packet */
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	struct tuple tuple;	/* of a fragment, only the addresses */
	__u32 route;		/* number of the route that the request in it has found, or NO_ROUTE_NUMBER */
	__u16 backend;		/* index, or NO_BACKEND */
	__u8 verdict;		/* enum verdict */
	__u8 vip;		/* id; 0 of a fragment */
	__u32 cpu;
	__u32 seq;		/* the packet's own; this and what follows is 0 of what is no well-formed TCP */
	__u16 length;		/* of its payload, bytes */
	__u8 flags;		/* as in its TCP header */
	__u8 method;		/* enum method, if `route` says that there is a request in it */
	__u32 reasons;		/* enum event_reason */
	__u32 reserved;
};

struct follow {			/* map follow: the client all of whose packets become events */
	__be32 client;
	__be16 port;		/* 0: all of its ports */
	__u8 enabled;
	__u8 reserved;
	__u64 lost;		/* of those, packets that found no room in the ring buffer; the program counts */
};

struct event_state {		/* map event_states, per CPU, by enum verdict_class, and map trace_states, which has one; written by the
				 * program alone */
	__u64 due;		/* when the next event is due if they come at the rate, ns by the kernel's ticks */
	__u64 told;		/* events in the ring buffer, read or not */
	__u64 limited;		/* packets whose turn it was, but that were too many for the rate */
	__u64 lost;		/* and that found no room in the ring buffer */
	__u32 left;		/* packets until the next one's turn, that one included; 0 before the first packet */
	__u32 reserved;
};

/*
 * Traces (docs/traces.md). Is a request traced? Routers and agents come to the same answer:
 *     h = trace_key;  mix(h, client | server << 32);  mix(h, client_port | server_port << 16 | seq << 32);  mix(h, 0)
 *     traced if h >> 32 < trace_below
 * with the tuple's fields as they stand in memory, seq that of the request's first byte, and mix() of the names' hash.
 */
#define TRACE_HEAD	1440	/* bytes; a head that is routed is in one packet, and no longer (PATH_MTU) */
#define TRACES_UNDER_WAY 2048	/* requests that an agent waits for the answers of */

struct trace {			/* map traces, a ring buffer: a request, and head_length bytes from its start behind this */
	__u64 time;		/* CLOCK_MONOTONIC, ns: router: it was routed; agent: it arrived */
	__u64 answered;		/* agent: the first byte of its answer left, likewise */
	struct tuple tuple;	/* client -> VIP */
	__u32 seq;		/* of the request's first byte */
	__u32 route;		/* router: its number */
	__u16 backend;		/* router: index */
	__u16 head_length;	/* agent: maybe with some of the body */
	__u16 status;		/* agent: of the answer */
	__u8 verdict;		/* router: enum verdict */
	__u8 reserved;
	__u32 answer_seq;	/* agent: of the answer's first byte */
};

struct traced {
	struct trace trace;
	__u8 head[TRACE_HEAD];
};
