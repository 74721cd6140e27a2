/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fallback: an ordinary proxy on the router's own host gets the connections that XDP does not route. It is
 * one more backend (contract.h, BACKEND_LOCAL): the connection's first packet is encapsulated to the host's own
 * address and passed up, an agent on the same interface makes the proxy's socket from it, and everything that
 * follows goes the same way, whatever it says. So nothing is lost or buffered, and the proxy reads what is
 * ambiguous, routes it by the same routes, and opens connections of its own to the backends.
 */
#pragma once

#include "swar.h"
#include "verdict.h"

/* What is counted for a connection that the router would refuse like this; UNDECIDED: the fallback does not
 * get it. */
static __always_inline enum verdict fallback_for(enum verdict refused)
{
	switch (refused) {
	case TX_RESET_NOT_HTTP: return FALLBACK_NOT_HTTP;
	case TX_BAD_REQUEST: return FALLBACK_AMBIGUOUS;
	case TX_LENGTH_REQUIRED: return FALLBACK_ENCODED;
	case TX_HEAD_TOO_LARGE: return FALLBACK_HEAD;
	case TX_URI_TOO_LONG: return FALLBACK_PATH;
	case TX_BODY_TOO_LARGE: return FALLBACK_BODY;
	case TX_NOT_IMPLEMENTED: return FALLBACK_UPGRADE;
	case TX_RESET_PIPELINED: return FALLBACK_PIPELINED;
	case FALLBACK_NO_ROUTE: return FALLBACK_NO_ROUTE;
	default: return UNDECIDED;
	}
}

#define TLS_HANDSHAKE 0x0316 /* content type and major version of a record (RFC 8446, 5.1), as they come */
#define SHORTEST_METHOD 8    /* bytes: fewer may be the beginning of any method */

/* What does not start with a method: is it known by its first bytes? */
static __always_inline enum verdict name_start(__u64 word, __u32 length)
{
	if ((__u16)word == TLS_HANDSHAKE)
		return FALLBACK_TLS;
	if (word == CHARS8('P', 'R', 'I', ' ', '*', ' ', 'H', 'T'))
		return FALLBACK_HTTP2;
	return length < SHORTEST_METHOD ? FALLBACK_HEAD : FALLBACK_NOT_HTTP;
}
