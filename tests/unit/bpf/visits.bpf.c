/* SPDX-License-Identifier: GPL-2.0-only */
/* Maps before an upgrade; AFTER makes those of after it, with the same names and other layouts. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct place {
#ifdef AFTER
	__u64 floor;
#endif
	__u32 street;
	__u16 number;
	__u16 kind;
};

#ifdef AFTER
struct visit {
	struct place place;
	__u64 seconds;		/* was 32 bits */
	__u8 added;
	__s8 change;		/* was 32 bits */
	char name[4];		/* was 8 */
	char note[8];		/* was 4 */
	__u16 steps[3];		/* was 5, of 32 bits */
	__u32 longer[4];	/* was 2 */
	struct place stops[2];	/* was 1 */
	struct place what;	/* was an integer */
};
#else
struct visit {
	char name[8];
	char note[4];
	__u32 seconds;
	__s32 change;
	__u32 dropped;
	struct place place;
	__u32 steps[5];
	__u32 longer[2];
	struct place stops[1];
	__u64 what;
};
#endif

struct plain {
	__u32 one;
	__u32 two;
};

#define TABLE(map, kind, entries, key_type, value_type)	\
	struct {					\
		__uint(type, kind);			\
		__uint(max_entries, entries);		\
		__type(key, key_type);			\
		__type(value, value_type);		\
	} map SEC(".maps")

TABLE(hash, BPF_MAP_TYPE_HASH, 5000, struct place, struct visit);
TABLE(recent, BPF_MAP_TYPE_LRU_HASH, 5000, struct place, struct visit);
TABLE(array, BPF_MAP_TYPE_ARRAY, 5000, __u32, struct visit);
TABLE(cpu_hash, BPF_MAP_TYPE_PERCPU_HASH, 50, struct place, struct visit);
TABLE(cpu_recent, BPF_MAP_TYPE_LRU_PERCPU_HASH, 50, struct place, struct visit);
TABLE(cpu_array, BPF_MAP_TYPE_PERCPU_ARRAY, 50, __u32, struct visit);
TABLE(cpu_odd, BPF_MAP_TYPE_PERCPU_ARRAY, 50, __u32, __u32);
TABLE(same, BPF_MAP_TYPE_HASH, 50000, struct plain, struct plain);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(key_size, 6);
#ifdef AFTER
	__uint(value_size, 4);
#else
	__uint(value_size, 3);
#endif
} untyped SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
