/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which route does the request in the scratch copy belong to?
 *
 * The host name selects first: if it is known to the VIP, only its routes count; else those of the longest
 * wildcard that it matches; else those for any host. Then the exact path, then prefixes from the longest to
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

#define NO_ROUTE 0 /* struct path says what else there may be */

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

/* The route for this very path and the request's method, or NO_ROUTE. Global: verified once. */
__noinline __u32 match_path(__u64 hash, __u32 host, __u32 length, __u32 kind)
{
	struct path_key key = { .hash = hash, .host = host, .length = length, .kind = kind };
	const struct scratch *scratch = get_scratch();
	const struct path *path;
	__u32 method, route;

	if (!scratch)
		return NO_ROUTE;
	path = bpf_map_lookup_elem(&paths, &key);
	if (!path || !same_path(scratch, path, scratch->request.path, length))
		return NO_ROUTE;
	method = scratch->request.method;
	if (method >= METHOD_COUNT)
		return NO_ROUTE;
	route = path->route[method];
	return route ? route : path->route[METHOD_ANY];
}

/*
 * Which routes a host name selects: their id in the upper half, their shapes in the lower. 0: none of this
 * name. `at`, `length`: where it stands in the scratch copy. Global: verified once.
 */
__noinline __u64 match_host(__u64 hash, __u32 names, __u32 at, __u16 length, __u16 kind)
{
	struct host_key key = { .hash = hash, .names = names, .length = length, .kind = kind };
	const struct scratch *scratch = get_scratch();
	const struct host *host = bpf_map_lookup_elem(&hosts, &key);

	if (!scratch || !host || !same_host(scratch, host, at, length))
		return 0;
	return (__u64)host->id << 32 | host->shapes;
}

/* The VIP's routes for any host, likewise. */
static __always_inline __u64 any_host(const struct vip *vip)
{
	return (__u64)vip->any_host << 32 | vip->any_host_shapes;
}

/* words_hash() of the name of `length` bytes at `at`, in lower case. Global: verified once. */
__noinline __u64 name_hash(__u32 at, __u32 length)
{
	const struct scratch *scratch = get_scratch();
	__u64 hash = route_key;

	if (!scratch)
		return 0;
	for (__u32 i = 0; i < MAX_HOST / 8 && 8 * i < length; i++)
		hash = hash_mix(hash, swar_first(swar_lower(word_at(scratch, at + 8 * i)), length - 8 * i));
	return hash;
}

/*
 * The wildcard with the most labels that the request's host name ends in; something has to stand in front of
 * its dot. `wildcards` says how many labels the VIP's wildcards have: what it has none of is not looked up,
 * so that a name of many labels costs no more than one of a few. Global: verified once.
 */
__noinline __u64 match_wildcard(__u32 names, __u32 wildcards)
{
	struct scratch *scratch = get_scratch();
	__u64 routes, found = 0;
	__u32 start, end, labels = 0;

	if (!scratch)
		return 0;
	start = scratch->request.host;
	end = start + scratch->request.host_length;
	for (__u32 i = 1; i < MAX_HOST && start + i < end; i++) {
		__u32 at = end - i;

		if (byte_at(scratch, at) != '.')
			continue;
		labels = forget(scratch, labels + 1);
		if (labels > MAX_WILDCARD_LABELS)
			break;
		if (!(wildcards >> labels & 1))
			continue;
		routes = match_host(name_hash(at, i), names, at, i, HOST_WILDCARD);
		if (routes)
			found = routes;
	}
	return found;
}

/* The routes that the request's Host selects: its own, or those of the longest wildcard, or those for any. */
static __always_inline __u64 select_host(const struct scratch *scratch, __u32 names, __u64 any,
					 __u32 wildcards)
{
	const struct request *request = &scratch->request;
	__u64 routes = 0;

	if (!request->host_length)
		return any;
	routes = match_host(request->host_hash, names, request->host, request->host_length, HOST_EXACT);
	if (!routes && wildcards)
		routes = match_wildcard(names, wildcards);
	return routes ? routes : any;
}

/* The route, or NO_ROUTE. `names`: whose host names; `any`: the routes without a host, as match_host says it. */
static __always_inline __u32 find_route(const struct scratch *scratch, __u32 names, __u64 any, __u32 wildcards)
{
	__u32 depth, id, shapes, route = NO_ROUTE;
	__u64 routes;

	routes = select_host(scratch, names, any, wildcards);
	id = routes >> 32;
	shapes = routes;
	depth = scratch->request.depth;
	if (shapes & SHAPE_EXACT)
		route = match_path(scratch->request.path_hash, id, scratch->request.path_length, PATH_EXACT);
	for (__u32 i = 0; i <= MAX_PREFIX_DEPTH && !route; i++) {
		const struct prefix *prefix = &scratch->prefix[(depth - i) & (PREFIXES - 1)];

		if (i > depth)
			break;
		if (shapes >> ((depth - i) & (PREFIXES - 1)) & 1)
			route = match_path(prefix->hash, id, prefix->length, PATH_PREFIX);
	}
	return route;
}
