// SPDX-License-Identifier: GPL-2.0-only
/*
 * The router: XDP on the interfaces that clients' packets come in on. Every function returns the verdict on
 * the packet, or UNDECIDED when the next one has to look. docs/architecture.md follows a connection through
 * them.
 *
 * An entry of the flow table is written last, once the packet is sure to leave: what a dropped packet says
 * must not count, or the bytes that follow it would pass as the body of a request that nobody got.
 */
#include "age.h"
#include "balance.h"
#include "encap.h"
#include "fallback.h"
#include "flow.h"
#include "handshake.h"
#include "http.h"
#include "icmp.h"
#include "lost.h"
#include "observe.h"
#include "order.h"
#include "packet.h"
#include "recover.h"
#include "reply.h"
#include "route.h"
#include "verdict.h"
#include "vlan.h"

static __noinline enum verdict say(struct xdp_md *ctx, const struct segment *segment, __u32 cookie,
				   __u32 ack, enum verdict verdict)
{
	struct reply reply = {
		.seq = segment->ack,
		.ack = ack,
		.window = later_window(cookie),
		.flags = TCP_FIN | TCP_PSH | TCP_ACK,
		.answer = answer_of(verdict),
	};

	return send_answer(ctx, segment, &reply, verdict);
}

/* The router answers a connection's first request itself and closes. What it said is remembered, so that
 * the client's retransmission gets the same. */
static __always_inline enum verdict answer_request(struct xdp_md *ctx, const struct segment *segment,
						   const struct entry *entry, enum verdict verdict)
{
	__u32 ack = data_end(segment);
	struct flow *flow;

	if (say(ctx, segment, segment->ack - 1, ack, verdict) != verdict)
		return DROP_NO_ROOM;
	flow = new_flow(segment);
	if (!flow)
		return DROP_NO_ROOM;
	flow->backend = NO_BACKEND;
	flow->request_ack = segment->ack;
	set_answered(flow, segment, ack, verdict);
	return put_flow(entry->set, segment, flow) ? DROP_NO_ROOM : verdict;
}

static __noinline enum verdict drop_or_reset(struct xdp_md *ctx, const struct segment *segment,
					     enum verdict verdict)
{
	return verdict < VERDICT_TX ? verdict : send_reset(ctx, segment, verdict);
}

static __noinline __u64 load_first_bytes(struct xdp_md *ctx, __u32 offset, __u32 length)
{
	__u64 word = 0;

	bpf_xdp_load_bytes(ctx, offset, &word, bounded_length(length, sizeof(word)));
	return word;
}

/* The connection goes to the fallback, for `reason`, and stays there. */
static __always_inline enum verdict open_fallback(struct xdp_md *ctx, struct segment *segment,
						  const struct entry *entry, enum verdict reason)
{
	struct flow *flow = new_flow(segment);

	if (!flow)
		return DROP_NO_ROOM;
	if (reason == FALLBACK_NOT_HTTP)
		reason = name_start(load_first_bytes(ctx, segment->payload, segment->length),
				    segment->length);
	flow->backend = FALLBACK_BACKEND;
	flow->state = FLOW_FALLBACK;
	flow->request_seq = segment->seq;
	flow->request_ack = segment->ack;
	if (encapsulate(ctx, segment, FALLBACK_BACKEND, opening_id(ctx, segment, 0), reason) != reason)
		return DROP_NO_BACKEND;
	return put_flow(entry->set, segment, flow) ? DROP_NO_ROOM : reason;
}

/* A first request that is not routed: to the fallback if there is one, else an HTTP answer, or a reset, as
 * the verdict says. */
static __noinline enum verdict refuse(struct xdp_md *ctx, struct segment *segment, const struct entry *entry,
				      enum verdict verdict)
{
	enum verdict reason = segment->vip->fallback ? fallback_for(verdict) : UNDECIDED;

	if (reason != UNDECIDED)
		return open_fallback(ctx, segment, entry, reason);
	if (answer_of(verdict) >= 0)
		return answer_request(ctx, segment, entry, verdict);
	return drop_or_reset(ctx, segment, verdict);
}

static __always_inline enum verdict without_route(const struct vip *vip)
{
	switch (vip->no_route) {
	case NO_ROUTE_RESET: return TX_RESET_NO_ROUTE;
	case NO_ROUTE_FALLBACK: return FALLBACK_NO_ROUTE;
	default: return TX_NO_ROUTE;
	}
}

/* Reads the request at the segment's start. UNDECIDED: it is routed to *cluster (from 0); else the verdict
 * to refuse it with. */
static __noinline enum verdict route_request(struct xdp_md *ctx, struct segment *segment,
					     struct scratch *scratch, __u32 *cluster)
{
	__u32 refused;

	if (load_head(ctx, segment->payload, segment->length))
		return DROP_NO_ROOM;
	refused = read_request(segment->length, segment->vip->strict);
	if (refused)
		return refused;
	if (segment->length > scratch->request.head_length + scratch->request.content_length)
		return TX_RESET_PIPELINED;
	segment->route = find_route(scratch, segment->vip->names, any_host(segment->vip), segment->vip->wildcards);
	if (segment->route == NO_ROUTE)
		return without_route(segment->vip);
	*cluster = route_cluster(segment->route);
	return UNDECIDED;
}

/* For the agent, of a connection's first request. */
static __always_inline __u16 head_hint(const struct flow *flow)
{
	return flow->is_head ? OUTER_ID_FIRST_HEAD : 0;
}

/* The first request of a connection whose cookie is valid: it gets a backend and a flow entry, replacing
 * what an earlier connection left. */
static __noinline enum verdict open_flow(struct xdp_md *ctx, struct segment *segment,
					 const struct entry *entry)
{
	struct scratch *scratch = get_scratch();
	struct flow *flow = new_flow(segment);
	enum verdict verdict;
	__u32 cluster;
	__u16 backend;

	if (!scratch || !flow)
		return DROP_NO_ROOM;
	verdict = route_request(ctx, segment, scratch, &cluster);
	if (verdict != UNDECIDED)
		return refuse(ctx, segment, entry, verdict);
	backend = choose_backend(cluster, segment->hash);
	if (backend == NO_BACKEND)
		return refuse(ctx, segment, entry, TX_UNAVAILABLE);
	flow->cluster = kept_route(segment);
	flow->backend = backend;
	flow->state = FLOW_OPEN;
	set_request(flow, segment, &scratch->request);
	verdict = encapsulate(ctx, segment, backend, opening_id(ctx, segment, OUTER_ID_NEW | head_hint(flow)),
			      ROUTED_FIRST);
	if (verdict == ROUTED_FIRST && put_flow(entry->set, segment, flow))
		return DROP_NO_ROOM;
	return verdict;
}

/* A later request, for another backend than the flow's. */
static __noinline enum verdict move_flow(struct xdp_md *ctx, struct segment *segment, struct entry *entry,
					      __u16 target)
{
	struct scratch *scratch = get_scratch();
	enum verdict verdict;

	if (!scratch)
		return DROP_NO_ROOM;
	entry->flow.mover = entry->flow.backend;
	entry->flow.backend = target;
	entry->flow.cluster = kept_route(segment);
	entry->flow.is_head = scratch->request.method == METHOD_HEAD;
	verdict = give_order(ctx, segment, &entry->flow, ROUTED_MOVED);
	if (verdict != ROUTED_MOVED)
		return verdict;
	if (scratch->order.adopts ? note_adoption(entry, segment, &scratch->request)
				  : note_order(entry, segment, &scratch->request))
		return DROP_NO_ROOM;
	return ROUTED_MOVED;
}

/*
 * A later request on an open flow. It stays with the flow's backend if that is in the cluster that its route names;
 * else the connection moves. What cannot be routed ends it, and in any case with a reset: the answer to the request
 * before it may still be under way, and the client would take what the router says for that.
 *
 * Only one that acknowledges some of that answer is taken: the head of the request before it has arrived then,
 * and need not be known any longer. One that does not comes again by itself.
 */
static __noinline enum verdict continue_flow(struct xdp_md *ctx, struct segment *segment,
						  struct entry *entry)
{
	struct scratch *scratch = get_scratch();
	enum verdict verdict;
	__u32 cluster, kind;
	__u16 backend;

	if (!scratch)
		return DROP_NO_ROOM;
	if (!seq_before(entry->flow.request_ack, segment->ack))
		return DROP_PIPELINED;
	verdict = route_request(ctx, segment, scratch, &cluster);
	if (verdict == FALLBACK_NO_ROUTE)
		verdict = TX_RESET_ROUTE_CHANGED;
	if (verdict != UNDECIDED)
		return drop_or_reset(ctx, segment, verdict);
	backend = next_backend(&entry->flow, cluster, segment->hash);
	if (backend == NO_BACKEND)
		return drop_or_reset(ctx, segment, TX_UNAVAILABLE);
	if (backend != entry->flow.backend)
		return move_flow(ctx, segment, entry, backend);
	kind = OUTER_ID_REQUEST | (scratch->request.method == METHOD_HEAD ? OUTER_ID_HEAD : 0);
	verdict = encapsulate(ctx, segment, backend, outer_id(entry->flow.cookie) | kind, ROUTED_NEXT);
	if (verdict == ROUTED_NEXT && note_request(entry, segment, &scratch->request))
		return DROP_NO_ROOM;
	return verdict;
}

static __always_inline int starts_request(struct xdp_md *ctx, const struct segment *segment)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 offset = segment->payload, ignored;
	__u64 word;

	if (!segment->length)
		return 0;
	if (segment->length >= sizeof(word) && offset <= MAX_HEADERS && data + offset + sizeof(word) <= end)
		word = *(__u64 *)(data + offset);
	else
		word = load_first_bytes(ctx, offset, segment->length);
	return method_of(word, &ignored) != METHOD_ANY;
}

/* No entry for the tuple: a connection's first request, or nothing that can be continued. */
static __always_inline enum verdict without_flow(struct xdp_md *ctx, struct segment *segment,
						 const struct entry *entry)
{
	enum verdict verdict;

	if (segment->flags & TCP_RST)
		return DROP_NO_FLOW;
	if (segment->length && cookie_check(&segment->tuple, segment->seq - 1, segment->ack - 1))
		return open_flow(ctx, segment, entry);
	if (starts_request(ctx, segment))
		return send_reset(ctx, segment, TX_RESET_COOKIE);
	verdict = answer_idle(ctx, segment);
	return verdict == UNDECIDED ? drop_lost(segment) : verdict;
}

/*
 * For a backend that is down, and not the next request: that would go on elsewhere. What has not been answered never is,
 * and nobody knows whether it was executed; so the client gets an error. A client without a byte of the answer yet
 * acknowledges what it did with the request: to hear it say so, user space probes (rauta/router.py).
 */
static __noinline enum verdict on_down(struct xdp_md *ctx, const struct segment *segment, const struct flow *flow)
{
	if (segment->flags & TCP_RST)
		return DROP_DOWN;
	if (segment->length || segment->flags & TCP_FIN || segment->ack == flow->request_ack ||
	    is_given_up(flow->backend))
		return send_reset(ctx, segment, TX_RESET_DOWN);
	return DROP_DOWN;
}

static __always_inline enum verdict forward(struct xdp_md *ctx, struct segment *segment,
					    const struct flow *flow, enum verdict verdict)
{
	int opens = flow->first && segment->length && is_flows_own(flow, segment) &&
		    !(segment->flags & TCP_RST);
	__u16 id = outer_id(flow->cookie);

	if (unlikely(is_down(flow->backend)))
		return on_down(ctx, segment, flow);
	if (opens && flow->first == FIRST_MOVED)
		return give_order(ctx, segment, flow, FORWARDED_ORDER);
	if (opens || verdict == FORWARDED_AGAIN)
		segment->route = flow->cluster; /* for its label */
	if (opens)
		id = opening_id(ctx, segment, head_hint(flow));
	else if (verdict == FORWARDED_AGAIN)
		id |= OUTER_ID_REQUEST | (flow->is_head ? OUTER_ID_HEAD : 0);
	return encapsulate(ctx, segment, flow->backend, id, verdict);
}

/* Has the segment anything that takes a place in the stream behind the newest request's start? An acknowledgement has
 * not, wherever it stands. */
static __always_inline int is_beyond(const struct segment *segment, const struct flow *flow)
{
	__u32 end = data_end(segment);

	return end != segment->seq && !(segment->flags & TCP_RST) && seq_before(flow->request_seq, end);
}

/*
 * A segment while the flow moves. The order goes again with the request; what else there is, by the backend that has
 * the order, and if it is behind the request only to whom that one has handed the connection. Acknowledgements are for
 * both: the old one may still be answering, and can go on only with them. If that one is down, the router's own order
 * moves the connection: nobody will say so.
 */
static __noinline enum verdict forward_moving(struct xdp_md *ctx, struct segment *segment,
						   const struct entry *entry, enum verdict verdict)
{
	const struct flow *flow = &entry->flow;
	__u16 id = outer_id(flow->cookie);
	int down = is_down(flow->mover);

	if (verdict == FORWARDED_AGAIN) {
		if (flow->answer >= MAX_ORDERS)
			return send_reset(ctx, segment, TX_RESET_UNMOVED);
		verdict = give_order(ctx, segment, flow, FORWARDED_ORDER);
		if (verdict != FORWARDED_ORDER)
			return verdict;
		return (down ? note_moved(entry, segment->seq, segment->ack) : note_order_again(entry)) ? DROP_NO_ROOM
												 : verdict;
	}
	if (unlikely(down))
		return DROP_DOWN;
	if (is_beyond(segment, flow))
		id |= OUTER_ID_BEYOND;
	return encapsulate(ctx, segment, flow->mover, id, FORWARDED_MOVING);
}

static __always_inline enum verdict forward_close(struct xdp_md *ctx, struct segment *segment,
						  const struct entry *entry)
{
	enum verdict verdict = forward(ctx, segment, &entry->flow, FORWARDED_CLOSE);

	if (verdict == FORWARDED_CLOSE && note_closing(entry, segment))
		return DROP_NO_ROOM;
	return verdict;
}

/*
 * The entry has noted a SYN, of a newer connection on the tuple perhaps, whose first request is not here
 * yet: until its first answer all its segments acknowledge the cookie. They are answered as if there were
 * no entry; what has overtaken the first request is dropped, and comes again behind it. UNDECIDED: it is
 * none of these. (That request itself, if it is one, has replaced the entry before anybody asks here.)
 */
static __noinline enum verdict on_newer_syn(struct xdp_md *ctx, const struct segment *segment,
					    const struct flow *flow)
{
	__u32 offset = segment->seq - flow->syn_isn;
	enum verdict verdict;

	if (flow->syn_seen != SYN_NEWEST || offset > ROUTER_WINDOW + 1 || segment->flags & TCP_RST)
		return UNDECIDED;
	if (flow->syn_isn == flow->isn && segment->ack - 1 == flow->cookie)
		return UNDECIDED;
	if (!cookie_check(&segment->tuple, flow->syn_isn, segment->ack - 1))
		return UNDECIDED;
	verdict = answer_idle(ctx, segment);
	return verdict == UNDECIDED ? DROP_OUT_OF_ORDER : verdict;
}

/* A segment of a connection that the fallback has. */
static __always_inline enum verdict forward_to_fallback(struct xdp_md *ctx, struct segment *segment,
							const struct flow *flow)
{
	if (segment->flags & (TCP_FIN | TCP_RST))
		return forward(ctx, segment, flow, FALLBACK_CLOSE);
	return forward(ctx, segment, flow,
		       segment->length && segment->seq == flow->request_seq ? FALLBACK_AGAIN
									    : FALLBACK_FORWARDED);
}

/* A segment without data on a connection that has an entry. */
static __always_inline enum verdict on_flow_bare(struct xdp_md *ctx, struct segment *segment,
						 const struct entry *entry)
{
	const struct flow *flow = &entry->flow;
	enum verdict verdict = on_newer_syn(ctx, segment, flow);

	if (verdict != UNDECIDED)
		return verdict;
	if (flow->state == FLOW_ANSWERED) {
		if (segment->flags & TCP_FIN && segment->seq == flow->next_request_seq)
			return send_acknowledgement(ctx, segment, flow->cookie, TCP_ACK, TX_CLOSE);
		return DROP_ANSWERED;
	}
	if (flow->state == FLOW_FALLBACK)
		return forward_to_fallback(ctx, segment, flow);
	if (flow->state == FLOW_MOVING)
		return forward_moving(ctx, segment, entry, FORWARDED);
	if (!(segment->flags & (TCP_FIN | TCP_RST)))
		return forward(ctx, segment, flow, FORWARDED);
	return forward_close(ctx, segment, entry);
}

/*
 * Data on a connection that the router has answered. The request again gets the answer again; what else
 * comes, the rest of a body mostly, is acknowledged and thrown away, so that a client which writes
 * everything before it reads gets to see the answer.
 */
static __noinline enum verdict on_answered_data(struct xdp_md *ctx, const struct segment *segment,
						     const struct entry *entry)
{
	const struct flow *answered = &entry->flow;
	__u32 ack = answered->next_request_seq, more = data_end(segment) - ack;
	struct reply reply = {
		.seq = segment->ack,
		.window = later_window(answered->cookie),
		.flags = TCP_ACK,
		.answer = -1,
	};

	if (segment->seq == answered->request_seq)
		return answer_of(answered->answer) < 0
			       ? DROP_ANSWERED
			       : say(ctx, segment, answered->cookie, ack, answered->answer);
	if (more <= ROUTER_WINDOW)
		ack += more;
	reply.ack = ack;
	if (send_answer(ctx, segment, &reply, TX_DISCARDED) != TX_DISCARDED)
		return DROP_NO_ROOM;
	return CHANGE_FLOW(entry, flow->next_request_seq = ack) ? DROP_NO_ROOM : TX_DISCARDED;
}

/*
 * Data that is not beyond the newest request may go to the backend if it cannot change what was routed: it is
 * a piece of a body, or begins with the very head. Otherwise a client could have a request routed that the
 * backend's kernel drops for its checksum, and put another one in its place.
 */
static __noinline enum verdict check_again(struct xdp_md *ctx, const struct segment *segment,
					   const struct flow *flow)
{
	__u32 head_end = flow->request_seq + flow->head_length, end = segment_end(segment);
	const struct scratch *scratch = get_scratch();

	if (!seq_before(segment->seq, head_end))
		return FORWARDED;
	if (seq_before(segment->seq, flow->request_seq))
		return seq_before(segment->seq, flow->body_seq) || seq_before(flow->request_seq, end) ? DROP_CHANGED
												   : FORWARDED;
	if (segment->seq != flow->request_seq || seq_before(end, head_end))
		return DROP_CHANGED;
	if (!scratch || load_head(ctx, segment->payload, segment->length))
		return DROP_NO_ROOM;
	return head_digest(scratch, flow->head_length) == flow->digest ? FORWARDED_AGAIN : DROP_CHANGED;
}

/* Is the segment worth a look at its cookie: can it be another connection's first data? A request may always
 * be, its SYN may have come by another router; what else there is only goes on from the SYN that came here. */
static __always_inline int may_open(struct xdp_md *ctx, const struct segment *segment,
				    const struct flow *flow)
{
	if (is_flows_own(flow, segment))
		return 0;
	return (flow->syn_seen == SYN_NEWEST && segment->seq - 1 == flow->syn_isn) || starts_request(ctx, segment);
}

/*
 * The first request of a connection that the tuple had before the one that lives now: replayed, or a very late
 * duplicate. Its cookie is as valid as ever, so it is known by its number. A tuple's initial numbers go up
 * (RFC 9293, 3.4.1); a client that draws them otherwise is known by its SYN. So is the first request of this very
 * connection, once it has moved.
 */
static __always_inline int is_older(const struct flow *flow, const struct segment *segment)
{
	if (flow->syn_seen == SYN_MOVED && segment->seq - 1 == flow->syn_isn &&
	    ((segment->ack - 1) & COOKIE_OPTIONS) == flow->options)
		return 1;
	if (flow->state == FLOW_CLOSING || flow->state == FLOW_ANSWERED)
		return 0;
	return seq_before(segment->seq - 1, flow->isn) &&
	       !(flow->syn_seen == SYN_NEWEST && segment->seq - 1 == flow->syn_isn);
}

/* Data on a recovered flow goes nowhere: see recover.h. What the backend has got already comes again without harm;
 * what it has not ends the connection, unless it is too far off to be of this one. */
static __always_inline enum verdict on_recovered_data(struct xdp_md *ctx, const struct segment *segment,
						      const struct flow *flow)
{
	__u32 beyond = segment_end(segment) - flow->next_request_seq;

	if (!beyond || beyond >> 31)
		return DROP_CHANGED;
	return beyond > ASK_SEQ_REACH ? DROP_OUT_OF_ORDER : send_reset(ctx, segment, TX_RESET_RECOVERED);
}

/* Data from the next request's place on, or beyond. Of a flow that moves, the mover may have said that it is done, and
 * nobody has heard it: with any other request than the one that moves he says it again, and nothing else. */
static __noinline enum verdict early(struct xdp_md *ctx, struct segment *segment, const struct flow *flow)
{
	if (flow->state != FLOW_MOVING || segment->seq != flow->next_request_seq)
		return DROP_OUT_OF_ORDER;
	if (unlikely(is_down(flow->mover))) /* an order would be the router's own, to go on with this very request */
		return send_reset(ctx, segment, TX_RESET_DOWN);
	return give_order(ctx, segment, flow, FORWARDED_EARLY);
}

/*
 * The first request of the newest connection that a SYN was seen of, with a cookie that is worth nothing: whoever has
 * waited until its key was replaced is told so, also where the tuple still has an older connection's entry. What may be
 * a retransmission of that one's newest request is not.
 */
static __always_inline int is_stale(struct xdp_md *ctx, const struct segment *segment, const struct flow *flow)
{
	return flow->syn_seen == SYN_NEWEST && segment->seq - 1 == flow->syn_isn && segment->seq != flow->request_seq &&
	       !is_flows_own(flow, segment) && starts_request(ctx, segment);
}

/* Data that is not the next request: a new connection's first request, the old one again, or a piece of its
 * body. */
static __always_inline enum verdict on_flow_data(struct xdp_md *ctx, struct segment *segment,
						 const struct entry *entry)
{
	const struct flow *flow = &entry->flow;
	enum verdict verdict;

	if (may_open(ctx, segment, flow) &&
	    cookie_check(&segment->tuple, segment->seq - 1, segment->ack - 1))
		return is_older(flow, segment) ? DROP_REPLAYED : open_flow(ctx, segment, entry);
	verdict = on_newer_syn(ctx, segment, flow);
	if (verdict != UNDECIDED)
		return verdict;
	if (is_stale(ctx, segment, flow))
		return send_reset(ctx, segment, TX_RESET_COOKIE);
	if (flow->state == FLOW_ANSWERED)
		return on_answered_data(ctx, segment, entry);
	if (flow->state == FLOW_FALLBACK)
		return forward_to_fallback(ctx, segment, flow);
	if (flow->state == FLOW_RECOVERED)
		return on_recovered_data(ctx, segment, flow);
	if (!seq_before(segment->seq, flow->next_request_seq))
		return early(ctx, segment, flow);
	if (seq_before(flow->next_request_seq, segment_end(segment)))
		return send_reset(ctx, segment, TX_RESET_PIPELINED);
	verdict = check_again(ctx, segment, flow);
	if (verdict < VERDICT_ENCAPSULATED)
		return verdict;
	if (flow->state == FLOW_MOVING)
		return forward_moving(ctx, segment, entry, verdict);
	if (segment->flags & TCP_FIN)
		return forward_close(ctx, segment, entry);
	return forward(ctx, segment, flow, verdict);
}

static __always_inline enum verdict on_flow(struct xdp_md *ctx, struct segment *segment, struct entry *entry)
{
	if (!segment->length || segment->flags & TCP_RST)
		return on_flow_bare(ctx, segment, entry);
	if (segment->seq == entry->flow.next_request_seq && entry->flow.state == FLOW_OPEN)
		return continue_flow(ctx, segment, entry);
	return on_flow_data(ctx, segment, entry);
}

static __always_inline enum verdict decide(struct xdp_md *ctx, struct segment *segment)
{
	struct entry entry;
	enum verdict verdict = parse_packet(ctx, segment);

	if (verdict != UNDECIDED)
		return verdict;
	segment->hash = flow_hash(&segment->tuple);
	find_flow(&entry, segment);
	if (!entry.set)
		return DROP_NO_ROOM;
	if (segment->flags & TCP_SYN) {
		if (entry.kept && note_syn(&entry, segment))
			return DROP_NO_ROOM;
		return answer_syn(ctx, segment);
	}
	return entry.kept ? on_flow(ctx, segment, &entry) : without_flow(ctx, segment, &entry);
}

/* Global: the verifier checks it once, with tags and without. */
__noinline enum verdict handle(struct xdp_md *ctx, struct outcome *outcome)
{
	struct segment segment;
	enum verdict verdict;

	if (!outcome)
		return DROP_NO_ROOM;
	segment.leaves = 0;
	verdict = decide(ctx, &segment);
	note_outcome(outcome, &segment);
	return verdict;
}

/* A packet that is IPv4 but not TCP. Global, and called from where the stack has room. */
__noinline enum verdict handle_other(struct xdp_md *ctx, struct outcome *outcome)
{
	const struct iphdr *ip = (void *)(long)ctx->data + ETH_LENGTH;
	struct segment segment = { .backend = NO_BACKEND };
	enum verdict verdict;

	if (!outcome || (void *)(ip + 1) > (void *)(long)ctx->data_end)
		return PASS_NOT_TCP;
	if (ip->protocol == SHIM_PROTOCOL)
		return take_notice(ctx);
	segment.tuple.client = ip->saddr;
	segment.tuple.server = ip->daddr;
	verdict = on_other_protocol(ctx, &segment);
	note_outcome(outcome, &segment);
	return verdict;
}

/* What is left to do once handle() has come to a verdict. */
static __always_inline enum verdict finish(struct xdp_md *ctx, struct outcome *outcome, enum verdict verdict)
{
	if (unlikely(verdict == PASS_NOT_TCP))
		return handle_other(ctx, outcome);
	if (unlikely(verdict == ROUTED_MOVED || verdict == FORWARDED_ORDER || verdict == FORWARDED_EARLY))
		return write_order(ctx) ? DROP_NO_ROOM : verdict;
	return verdict;
}

/* What was taken off goes where the frame goes, back or up; through another interface go no tags. */
static __always_inline enum verdict handle_tagged(struct xdp_md *ctx, struct observer *observer)
{
	struct outcome *outcome = &observer->outcome;
	enum verdict verdict;

	if (take_tags(ctx, &observer->tags)) {
		*outcome = nothing_known;
		return DROP_NO_ROOM;
	}
	verdict = finish(ctx, outcome, handle(ctx, outcome));
	return outcome->leaves || !put_tags(ctx, &observer->tags) ? verdict : DROP_NO_ROOM;
}

/* While a flow table is copied, nobody may change it. Clients send again what they sent meanwhile. */
SEC("xdp")
int rauta_pause(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("xdp")
int rauta_ingress(struct xdp_md *ctx)
{
	struct observer *observer = get_observer();
	enum verdict verdict;
	__u64 start;
	__u32 leaves;

	if (!observer)
		return XDP_ABORTED;
	start = start_timing(observer);
	if (unlikely(has_tag(ctx)))
		verdict = handle_tagged(ctx, observer);
	else
		verdict = finish(ctx, &observer->outcome, handle(ctx, &observer->outcome));
	observe(&observer->outcome, verdict, start);
	if (verdict < VERDICT_DROP || verdict >= VERDICT_FALLBACK)
		return XDP_PASS;
	if (verdict < VERDICT_TX)
		return XDP_DROP;
	leaves = observer->outcome.leaves;
	return leaves ? bpf_redirect(leaves, 0) : XDP_TX;
}

/* Types that no map definition shows to the compiler in full: this puts them into the object's BTF, for
 * libbpf and the control plane. */
const volatile struct {
	enum verdict verdict;
	enum verdict_class verdict_class;
	enum method method;
	enum no_route_answer no_route;
	enum first_kind first_kind;
	enum backend_down backend_down;
	enum syn_seen syn_seen;
	enum shim_kind shim_kind;
	struct label label;
	enum shim_flags shim_flags;
	struct shim shim;
	struct bond bond;
	enum path_kind path_kind;
	enum host_kind host_kind;
	enum flow_state flow_state;
	enum ask_kind ask_kind;
	enum answer_taken answer_taken;
	struct lost_segment lost_segment;
	struct ask_call ask_call;
	struct maglev_slots maglev_slots;
	struct event event;
} contract_types = {};

char _license[] SEC("license") = "GPL";
