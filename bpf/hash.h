/* SPDX-License-Identifier: GPL-2.0-only */
/* The keyed hash of routes and flows (defined in contract.h), and the keys, which the loader sets. */
#pragma once

#include "mix.h"

const volatile __u64 route_key;
const volatile __u64 flow_key;

static __always_inline __u64 flow_hash(const struct tuple *tuple)
{
	__u64 hash = hash_mix(flow_key, (__u64)tuple->server << 32 | tuple->client);

	return hash_mix(hash, (__u64)tuple->server_port << 16 | tuple->client_port);
}
