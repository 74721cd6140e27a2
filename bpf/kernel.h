/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs need from the kernel: UAPI headers, and the few internal fields and functions that have
 * no UAPI. Internal structs are partial and relocated at load time (CO-RE), so no header tree of the
 * running kernel is needed.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "contract.h"

#define ETH_LENGTH  ((__u32)sizeof(struct ethhdr))
#define IP_LENGTH   ((__u32)sizeof(struct iphdr))
#define TCP_LENGTH  ((__u32)sizeof(struct tcphdr))
#define MAX_HEADERS (ETH_LENGTH + IP_LENGTH + 60) /* with all the options that TCP has room for */
#define IP_DF	    bpf_htons(0x4000)
#define IP_FRAGMENT bpf_htons(0x3fff) /* more fragments, or an offset */
#define DEFAULT_TTL 64

#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif
#ifndef barrier
#define barrier() asm volatile("" ::: "memory") /* the compiler moves no access to memory over it */
#endif
#define unlikely(x) __builtin_expect(!!(x), 0)
#define likely(x)   __builtin_expect(!!(x), 1)

/*
 * A length that the verifier knows to be 1..limit: helpers refuse what may be 0. The empty asm keeps the
 * compiler from folding the check into one that the verifier cannot follow. A length outside the range
 * becomes `limit`: callers have checked already.
 */
static __always_inline __u32 bounded_length(__u32 length, __u32 limit)
{
	length -= 1;
	asm volatile("" : "+r"(length));
	if (length >= limit)
		length = limit - 1;
	asm volatile("" : "+r"(length));
	return length + 1;
}

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20

/*
 * The same value, of which the verifier now knows nothing: `map_value->zero` is 0, but it can't know. In a
 * loop it would otherwise follow every value that a position can take, instead of seeing that the second
 * turn is like the first.
 */
#define forget(map_value, value) ((value) + (map_value)->zero)

static __always_inline __u8 tcp_flags(const struct tcphdr *tcp)
{
	return ((const __u8 *)tcp)[13];
}

static __always_inline __u32 tcp_header_length(const struct tcphdr *tcp)
{
	return tcp->doff * 4;
}
