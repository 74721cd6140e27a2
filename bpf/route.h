/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which cluster does the request in the scratch copy belong to?
 *
 * The host name selects first: once it is known to the VIP, only its routes count. Then the exact path,
 * then prefixes from the longest to
 * "/", looking only at depths that the host's routes use. At each, a route for the request's method before
 * one for any method. A hash that matches is not believed: the text is compared, so nobody can choose a
 * path that collides with another.
 */
#pragma once

#include "hash.h"
#include "packet.h"
#include "scratch.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096); /* the loader sets what the configuration needs */
	__type(key, struct host_key);
	__type(value, struct host);
} hosts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536); /* likewise */
	__type(key, struct path_key);
	__type(value, struct path);
} paths SEC(".maps");

#define NO_CLUSTER 0 /* clusters are numbered from 1 in routes */

static __always_inline int same_host(const struct scratch *scratch, const struct host *host, __u32 at,
				     __u32 length)
{
	for (__u32 i = 0; i < MAX_HOST / 8; i++) {
		__u64 text;

		if (8 * i >= length)
			return 1;
		text = swar_first(swar_lower(word_at(scratch, at + 8 * i)), length - 8 * i);
		if (text != *(const __u64 *)(host->name + 8 * i))
			return 0;
	}
	return length <= MAX_HOST;
}

static __always_inline int same_path(const struct scratch *scratch, const struct path *path, __u32 at,
				     __u32 length)
{
	for (__u32 i = 0; i < MAX_PATH / 8; i++) {
		__u64 text;

		if (8 * i >= length)
			return 1;
		text = swar_first(word_at(scratch, at + 8 * i), length - 8 * i);
		if (text != *(const __u64 *)(path->path + 8 * i))
			return 0;
	}
	return length <= MAX_PATH;
}

/* The cluster (from 1) that the routes for this very path name for the request's method, or NO_CLUSTER.
 * Global: verified once. */
__noinline __u32 match_path(__u64 hash, __u32 host, __u32 length, __u32 kind)
{
	struct path_key key = { .hash = hash, .host = host, .length = length, .kind = kind };
	const struct scratch *scratch = get_scratch();
	const struct path *path;
	__u32 method, cluster;

	if (!scratch)
		return NO_CLUSTER;
	path = bpf_map_lookup_elem(&paths, &key);
	if (!path || !same_path(scratch, path, scratch->request.path, length))
		return NO_CLUSTER;
	method = scratch->request.method;
	if (method >= METHOD_COUNT)
		return NO_CLUSTER;
	cluster = path->cluster[method];
	return cluster ? cluster : path->cluster[METHOD_ANY];
}

struct host_routes {
	__u32 id;
	__u32 shapes;
};

/* Replaces the routes for any host by those of the request's Host, if the VIP has some. */
static __always_inline void select_host(const struct scratch *scratch, __u32 vip,
					struct host_routes *routes)
{
	struct host_key key = {
		.hash = scratch->request.host_hash,
		.vip = vip,
		.length = scratch->request.host_length,
	};
	const struct host *host;

	if (!key.length)
		return;
	host = bpf_map_lookup_elem(&hosts, &key);
	if (host && same_host(scratch, host, scratch->request.host, key.length)) {
		routes->id = host->id;
		routes->shapes = host->shapes;
	}
}

/* The cluster, numbered from 1, or NO_CLUSTER. `any_host`, `any_host_shapes`: the VIP's routes without a
 * host. Global: verified once. */
__noinline __u32 find_cluster(__u32 vip, __u32 any_host, __u32 any_host_shapes)
{
	struct host_routes routes = { any_host, any_host_shapes };
	const struct scratch *scratch = get_scratch();
	__u32 depth, cluster = NO_CLUSTER;

	if (!scratch)
		return NO_CLUSTER;
	select_host(scratch, vip, &routes);
	depth = scratch->request.depth;
	if (routes.shapes & SHAPE_EXACT)
		cluster = match_path(scratch->request.path_hash, routes.id, scratch->request.path_length,
				     PATH_EXACT);
	for (__u32 i = 0; i <= MAX_PREFIX_DEPTH && !cluster; i++) {
		const struct prefix *prefix = &scratch->prefix[(depth - i) & (PREFIXES - 1)];

		if (i > depth)
			break;
		if (routes.shapes >> ((depth - i) & (PREFIXES - 1)) & 1)
			cluster = match_path(prefix->hash, routes.id, prefix->length, PATH_PREFIX);
	}
	return cluster;
}
