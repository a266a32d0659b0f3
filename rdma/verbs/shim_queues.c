//go:build verbs && cgo

// Making and ending queues; their notifications.
#include <stdlib.h>

#include "library.h"

int
mv_cq_create(struct mv_device *d, uint32_t depth, struct mv_cq **out)
{
	struct mv_cq *c;
	int rc;

	c = calloc(1, sizeof(*c));
	if (!c)
		return ENOMEM;
	RETRY_PTR(c->channel, lib.create_comp_channel(d->ctx));
	if (!c->channel) {
		rc = error_number();
		free(c);
		return rc;
	}
	c->fd = c->channel->fd;
	rc = mv_nonblocking(c->fd);
	if (rc == 0) {
		RETRY_PTR(c->cq, lib.create_cq(d->ctx, depth, c, c->channel, 0));
		if (!c->cq)
			rc = error_number();
	}
	if (rc) {
		mv_cq_destroy(c);
		return rc;
	}
	c->depth = c->cq->cqe;
	*out = c;
	return 0;
}

static void
drain(struct mv_cq *c)
{
	struct ibv_cq *cq;
	void *context;

	for (;;) {
		if (lib.get_cq_event(c->channel, &cq, &context) == 0)
			c->unacked++;
		else if (errno != EINTR)
			return; // EAGAIN
	}
}

int
mv_cq_destroy(struct mv_cq *c)
{
	int rc = 0, e;

	if (c->cq) {
		// ibv_destroy_cq waits until every event was acknowledged.
		drain(c);
		if (c->unacked)
			lib.ack_cq_events(c->cq, c->unacked);
		c->unacked = 0;
		RETRY(rc, lib.destroy_cq(c->cq));
		if (rc)
			return rc;
	}
	RETRY(e, lib.destroy_comp_channel(c->channel));
	free(c);
	return e;
}

int
mv_cq_arm(struct mv_device *d)
{
	struct mv_cq *c = d->queue;
	struct ibv_cq *cq;
	void *context;
	int rc;

	c->told = 0;
	if (c->armed) {
		// One event at most for each arming. While it has not come, the queue is armed.
		while (lib.get_cq_event(c->channel, &cq, &context)) {
			if (errno == EAGAIN)
				return 0;
			if (errno != EINTR)
				return error_number();
		}
		c->armed = 0;
		c->told = 1;
		c->unacked++;
	}
	if (c->unacked >= 1024) { // a mutex each time: in batches
		lib.ack_cq_events(c->cq, c->unacked);
		c->unacked = 0;
	}
	RETRY(rc, ibv_req_notify_cq(c->cq, 0));
	if (rc == 0)
		c->armed = 1;
	return rc;
}

int
mv_cq_resize(struct mv_cq *c, uint32_t depth)
{
	int rc;
	RETRY(rc, lib.resize_cq(c->cq, depth));
	if (rc == 0)
		c->depth = c->cq->cqe;
	return rc;
}

int
mv_srq_create(struct ibv_pd *pd, uint32_t depth, uint64_t tag, struct ibv_srq **out)
{
	struct ibv_srq_init_attr a = {
		.srq_context = (void *)(uintptr_t)tag,
		.attr = { .max_wr = depth, .max_sge = 1 },
	};

	RETRY_PTR(*out, lib.create_srq(pd, &a));
	return *out ? 0 : error_number();
}

int
mv_srq_limit(struct ibv_srq *s, uint32_t limit)
{
	struct ibv_srq_attr a = { .srq_limit = limit };
	int rc;
	RETRY(rc, lib.modify_srq(s, &a, IBV_SRQ_LIMIT));
	return rc;
}

int
mv_srq_destroy(struct ibv_srq *s)
{
	int rc;
	RETRY(rc, lib.destroy_srq(s));
	return rc;
}

int
mv_qp_create(struct mv_device *d, const struct mv_qp_config *cfg, struct mv_qp **out, const char **step)
{
	struct ibv_qp_init_attr a = {
		.send_cq = cfg->send_cq->cq, .recv_cq = cfg->recv_cq->cq, .srq = cfg->srq, .qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = cfg->sends, .max_recv_wr = cfg->recvs, .max_send_sge = 1, .max_recv_sge = cfg->srq ? 0 : 1,
			.max_inline_data = cfg->max_inline,
		},
	};
	struct ibv_qp_attr init = { .qp_state = IBV_QPS_INIT, .port_num = d->port, .qp_access_flags = mv_access(cfg->access) };
	struct mv_qp *q;
	int rc;

	*step = "allocate memory";
	q = calloc(1, sizeof(*q));
	if (!q)
		return ENOMEM;
	*step = "ibv_create_qp";
	RETRY_PTR(q->qp, lib.create_qp(cfg->pd, &a));
	if (!q->qp) {
		rc = error_number();
		free(q);
		return rc;
	}
	q->num = q->qp->qp_num;
	*step = "ibv_modify_qp to INIT";
	RETRY(rc, lib.modify_qp(q->qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
	if (rc) {
		mv_qp_destroy(q);
		return rc;
	}
	*out = q;
	return 0;
}

int
mv_qp_destroy(struct mv_qp *q)
{
	int rc;
	RETRY(rc, lib.destroy_qp(q->qp));
	if (rc == 0)
		free(q);
	return rc;
}

static enum ibv_mtu
mtu_code(uint32_t bytes)
{
	enum ibv_mtu m = IBV_MTU_256;
	while (m < IBV_MTU_4096 && 128u << m < bytes)
		m++;
	return m;
}

int
mv_qp_connect(struct mv_device *d, struct mv_qp *q, const struct mv_remote *r, const char **step)
{
	struct ibv_qp_attr rtr = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = mtu_code(r->mtu),
		.dest_qp_num = r->qpn,
		.rq_psn = r->psn,
		.max_dest_rd_atomic = r->max_dest_rd_atomic,
		.min_rnr_timer = r->min_rnr_timer,
		.ah_attr = {
			.is_global = 1,
			.port_num = d->port,
			.grh = { .sgid_index = d->gid_index, .hop_limit = 64 },
		},
	};
	struct ibv_qp_attr rts = {
		.qp_state = IBV_QPS_RTS,
		.sq_psn = r->sq_psn,
		.timeout = r->timeout,
		.retry_cnt = r->retry_cnt,
		.rnr_retry = r->rnr_retry,
		.max_rd_atomic = r->max_rd_atomic,
	};
	int rc;

	memcpy(rtr.ah_attr.grh.dgid.raw, r->gid, 16);
	*step = "ibv_modify_qp to RTR";
	RETRY(rc, lib.modify_qp(q->qp, &rtr,
	                        IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
	                                IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
	if (rc)
		return rc;
	*step = "ibv_modify_qp to RTS";
	RETRY(rc, lib.modify_qp(q->qp, &rts,
	                        IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
	                                IBV_QP_MAX_QP_RD_ATOMIC));
	return rc;
}

int
mv_qp_error(struct mv_qp *q)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_ERR };
	int rc;
	RETRY(rc, lib.modify_qp(q->qp, &a, IBV_QP_STATE));
	return rc;
}
