/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP errors (RFC 792): eight bytes, and the beginning of the packet that they are about. The one that a
 * sender has to hear of is "fragmentation needed" (RFC 1191): what is too big for a link further on would
 * disappear again and again.
 */
#pragma once

#include "kernel.h"

#define ICMP_UNREACHABLE	  3
#define ICMP_FRAGMENTATION_NEEDED 4 /* its code */
#define ICMP_SOURCE_QUENCH	  4
#define ICMP_REDIRECT		  5
#define ICMP_TIME_EXCEEDED	  11
#define ICMP_PARAMETER_PROBLEM	  12
#define ICMP_LENGTH		  ((__u32)sizeof(struct icmp_error))
#define MIN_MTU			  68 /* RFC 791, 3.2 */

struct icmp_error {
	__u8 type;
	__u8 code;
	__u16 check;
	__be16 unused;
	__be16 mtu; /* of the link that the packet did not fit on */
};

struct excerpt { /* of a TCP segment without IP options: the least that RFC 792 asks for */
	struct iphdr ip;
	__be16 source;
	__be16 destination;
	__be32 seq;
};

static __always_inline int is_error(const struct icmp_error *icmp)
{
	return icmp->type == ICMP_UNREACHABLE || icmp->type == ICMP_SOURCE_QUENCH ||
	       icmp->type == ICMP_REDIRECT || icmp->type == ICMP_TIME_EXCEEDED ||
	       icmp->type == ICMP_PARAMETER_PROBLEM;
}

static __always_inline int is_fragmentation_needed(const struct icmp_error *icmp)
{
	return icmp->type == ICMP_UNREACHABLE && icmp->code == ICMP_FRAGMENTATION_NEEDED;
}

static __always_inline int is_excerpt(const struct excerpt *excerpt)
{
	return excerpt->ip.version == 4 && excerpt->ip.ihl == 5 && excerpt->ip.protocol == IPPROTO_TCP &&
	       !(excerpt->ip.frag_off & IP_FRAGMENT);
}
