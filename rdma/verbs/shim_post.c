//go:build verbs && cgo

// The data path: posting and polling. Both go through the context's own operations
// (verbs.h) and need no symbol of the library.
#include <endian.h>
#include <stdlib.h>

#include "library.h"

// list_entry is the verbs' form of what is posted. The requests stay linked: entry i
// points to i+1, and a post cuts the chain after its last one.
struct list_entry {
	struct ibv_send_wr send;
	struct ibv_recv_wr recv;
	struct ibv_sge sge;
};

int
mv_make_lists(struct mv_device *d)
{
	struct list_entry *l = calloc(MV_LIST, sizeof(*l));
	int i;

	if (!l)
		return ENOMEM;
	for (i = 0; i < MV_LIST; i++) {
		l[i].send.sg_list = l[i].recv.sg_list = &l[i].sge;
		l[i].send.next = &l[i + 1].send;
		l[i].recv.next = &l[i + 1].recv;
	}
	d->lists = l;
	return 0;
}

static const uint16_t completed[] = {
	[IBV_WC_SEND] = MV_WC_SEND,
	[IBV_WC_RDMA_WRITE] = MV_WC_WRITE,
	[IBV_WC_RDMA_READ] = MV_WC_READ,
	[IBV_WC_COMP_SWAP] = MV_WC_COMPARE_SWAP,
	[IBV_WC_FETCH_ADD] = MV_WC_FETCH_ADD,
};

int
mv_cq_poll(struct mv_device *d)
{
	struct mv_cq *c = d->queue;
	struct ibv_wc raw[MV_POLL];
	struct mv_wc *to = d->wc;
	int i, n;

	n = ibv_poll_cq(c->cq, d->n, raw);
	for (i = 0; i < n; i++) {
		to[i].id = raw[i].wr_id;
		to[i].status = raw[i].status;
		to[i].bytes = raw[i].byte_len;
		to[i].has_imm = raw[i].wc_flags & IBV_WC_WITH_IMM;
		to[i].imm = be32toh(raw[i].imm_data);
		to[i].qpn = raw[i].qp_num;
		if (raw[i].opcode & IBV_WC_RECV)
			to[i].op = raw[i].opcode == IBV_WC_RECV_RDMA_WITH_IMM ? MV_WC_RECV_WRITE_IMM : MV_WC_RECV;
		else
			to[i].op = raw[i].opcode <= IBV_WC_FETCH_ADD ? completed[raw[i].opcode] : MV_WC_SEND;
	}
	return n;
}

static const enum ibv_wr_opcode opcodes[] = {
	[MV_SEND] = IBV_WR_SEND,
	[MV_SEND_IMM] = IBV_WR_SEND_WITH_IMM,
	[MV_WRITE] = IBV_WR_RDMA_WRITE,
	[MV_WRITE_IMM] = IBV_WR_RDMA_WRITE_WITH_IMM,
	[MV_READ] = IBV_WR_RDMA_READ,
	[MV_COMPARE_SWAP] = IBV_WR_ATOMIC_CMP_AND_SWP,
	[MV_FETCH_ADD] = IBV_WR_ATOMIC_FETCH_AND_ADD,
};

int
mv_post_send(struct mv_device *d)
{
	struct mv_qp *q = d->queue;
	struct list_entry *l = d->lists;
	struct ibv_send_wr *bad = NULL;
	uint32_t i, n = d->n;
	int rc;

	for (i = 0; i < n; i++) {
		const struct mv_send *from = &d->send[i];
		struct ibv_send_wr *wr = &l[i].send;

		l[i].sge.addr = from->addr;
		l[i].sge.length = from->len;
		l[i].sge.lkey = from->lkey;
		wr->wr_id = from->id;
		wr->num_sge = from->len != 0;
		wr->opcode = opcodes[from->op];
		wr->imm_data = htobe32(from->imm);
		wr->send_flags = (from->flags & MV_SIGNALED ? IBV_SEND_SIGNALED : 0) | (from->flags & MV_INLINE ? IBV_SEND_INLINE : 0);
		if (from->op >= MV_COMPARE_SWAP) {
			wr->wr.atomic.remote_addr = from->remote;
			wr->wr.atomic.rkey = from->rkey;
			// FETCH_ADD adds the first operand; COMPARE_SWAP compares it.
			wr->wr.atomic.compare_add = from->op == MV_FETCH_ADD ? from->swap_add : from->compare;
			wr->wr.atomic.swap = from->swap_add;
		} else if (from->op >= MV_WRITE) {
			wr->wr.rdma.remote_addr = from->remote;
			wr->wr.rdma.rkey = from->rkey;
		}
	}
	l[n - 1].send.next = NULL;
	rc = ibv_post_send(q->qp, &l[0].send, &bad);
	l[n - 1].send.next = &l[n].send;
	d->taken = rc == 0 ? n : 0;
	if (rc && bad) // send is an entry's first member
		d->taken = (uint32_t)((struct list_entry *)bad - l);
	return rc;
}

// fill_receives makes the verbs' list of receives.
static struct ibv_recv_wr *
fill_receives(struct mv_device *d)
{
	struct list_entry *l = d->lists;
	uint32_t i, n = d->n;

	for (i = 0; i < n; i++) {
		const struct mv_recv *from = &d->recv[i];

		l[i].sge.addr = from->addr;
		l[i].sge.length = from->len;
		l[i].sge.lkey = from->lkey;
		l[i].recv.wr_id = from->id;
		l[i].recv.num_sge = from->len != 0;
	}
	l[n - 1].recv.next = NULL;
	return &l[0].recv;
}

static int
receives_posted(struct mv_device *d, int rc, struct ibv_recv_wr *bad)
{
	struct list_entry *l = d->lists;
	uint32_t n = d->n;

	l[n - 1].recv.next = &l[n].recv;
	d->taken = rc == 0 ? n : 0;
	if (rc && bad)
		d->taken = (uint32_t)((struct list_entry *)((char *)bad - offsetof(struct list_entry, recv)) - l);
	return rc;
}

int
mv_post_recv(struct mv_device *d)
{
	struct mv_qp *q = d->queue;
	struct ibv_recv_wr *bad = NULL;
	int rc = ibv_post_recv(q->qp, fill_receives(d), &bad);

	return receives_posted(d, rc, bad);
}

int
mv_post_srq(struct mv_device *d)
{
	struct ibv_recv_wr *bad = NULL;
	int rc = ibv_post_srq_recv(d->queue, fill_receives(d), &bad);

	return receives_posted(d, rc, bad);
}
