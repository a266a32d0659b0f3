//go:build verbs && cgo

#include <dlfcn.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <infiniband/verbs.h>

#include "shim.h"

// What is taken from the library. Posting and polling go through the context's
// own operations (verbs.h) and need no symbol.
#define SYMBOLS(X)                                                                                 \
	X(get_device_list, struct ibv_device **, (int *))                                          \
	X(free_device_list, void, (struct ibv_device **))                                          \
	X(open_device, struct ibv_context *, (struct ibv_device *))                                \
	X(close_device, int, (struct ibv_context *))                                               \
	X(query_device, int, (struct ibv_context *, struct ibv_device_attr *))                     \
	X(query_port, int, (struct ibv_context *, uint8_t, struct ibv_port_attr *))                \
	X(query_gid, int, (struct ibv_context *, uint8_t, int, union ibv_gid *))                   \
	X(alloc_pd, struct ibv_pd *, (struct ibv_context *))                                       \
	X(dealloc_pd, int, (struct ibv_pd *))                                                      \
	X(reg_mr, struct ibv_mr *, (struct ibv_pd *, void *, size_t, int))                         \
	X(dereg_mr, int, (struct ibv_mr *))                                                        \
	X(create_comp_channel, struct ibv_comp_channel *, (struct ibv_context *))                  \
	X(destroy_comp_channel, int, (struct ibv_comp_channel *))                                  \
	X(create_cq, struct ibv_cq *, (struct ibv_context *, int, void *, struct ibv_comp_channel *, int)) \
	X(destroy_cq, int, (struct ibv_cq *))                                                      \
	X(get_cq_event, int, (struct ibv_comp_channel *, struct ibv_cq **, void **))               \
	X(ack_cq_events, void, (struct ibv_cq *, unsigned int))                                    \
	X(create_qp, struct ibv_qp *, (struct ibv_pd *, struct ibv_qp_init_attr *))                \
	X(modify_qp, int, (struct ibv_qp *, struct ibv_qp_attr *, int))                            \
	X(destroy_qp, int, (struct ibv_qp *))                                                      \
	X(get_async_event, int, (struct ibv_context *, struct ibv_async_event *))                  \
	X(ack_async_event, void, (struct ibv_async_event *))                                       \
	X(event_type_str, const char *, (enum ibv_event_type))                                     \
	X(fork_init, int, (void))

static struct {
	void *handle;
	int fork;
#define FIELD(name, ret, args) ret(*name) args;
	SYMBOLS(FIELD)
#undef FIELD
	// Newer than the rest; NULL in an old library.
	int (*query_gid_ex)(struct ibv_context *, uint32_t, uint32_t, struct ibv_gid_entry *, uint32_t, size_t);
	enum ibv_fork_status (*is_fork_initialized)(void);
} lib;

#define RETRY(rc, call)           \
	do {                      \
		(rc) = (call);    \
	} while ((rc) == EINTR)

#define RETRY_PTR(p, call)                         \
	do {                                       \
		errno = 0;                         \
		(p) = (call);                      \
	} while ((p) == NULL && errno == EINTR)

// A NULL of the library without errno is a lack of memory.
static int error_number(void) { return errno ? errno : ENOMEM; }

const char *
mv_load(void)
{
	static char why[512];
	void *h;
	int rc;

	if (lib.handle)
		return NULL;
	h = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
	if (!h) {
		const char *e = dlerror();
		strncpy(why, e ? e : "dlopen failed", sizeof(why) - 1);
		return why;
	}
#define LOOK(name, ret, args)                                                               \
	*(void **)&lib.name = dlsym(h, "ibv_" #name);                                       \
	if (!lib.name) {                                                                    \
		dlclose(h);                                                                 \
		return "libibverbs.so.1 has no ibv_" #name ": it is older than rdma-core 17"; \
	}
	SYMBOLS(LOOK)
#undef LOOK
	*(void **)&lib.query_gid_ex = dlsym(h, "_ibv_query_gid_ex");
	*(void **)&lib.is_fork_initialized = dlsym(h, "ibv_is_fork_initialized");

	if (lib.is_fork_initialized)
		lib.fork = lib.is_fork_initialized();
	if (lib.fork == IBV_FORK_DISABLED) {
		RETRY(rc, lib.fork_init());
		if (rc == 0)
			lib.fork = IBV_FORK_ENABLED;
	}
	lib.handle = h;
	return NULL;
}

int
mv_fork(void)
{
	return lib.fork;
}

static int
nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return errno;
	return 0;
}

static int
query(struct mv_device *d, const char **step)
{
	struct ibv_device_attr da;
	struct ibv_port_attr pa;
	union ibv_gid gid;
	int rc;

	*step = "ibv_query_device";
	memset(&da, 0, sizeof(da));
	RETRY(rc, lib.query_device(d->ctx, &da));
	if (rc)
		return rc;
	*step = "ibv_query_port";
	memset(&pa, 0, sizeof(pa));
	RETRY(rc, lib.query_port(d->ctx, d->port, &pa));
	if (rc)
		return rc;
	*step = "ibv_query_gid";
	memset(&gid, 0, sizeof(gid));
	errno = 0;
	if (lib.query_gid(d->ctx, d->port, d->gid_index, &gid))
		return errno ? errno : EIO;
	d->attr.gid_type = 3;
	if (lib.query_gid_ex) {
		struct ibv_gid_entry e;
		memset(&e, 0, sizeof(e));
		RETRY(rc, lib.query_gid_ex(d->ctx, d->port, d->gid_index, &e, 0, sizeof(e)));
		if (rc == 0)
			d->attr.gid_type = e.gid_type;
	}
	memcpy(d->attr.gid, gid.raw, 16);
	d->attr.active = pa.state == IBV_PORT_ACTIVE;
	d->attr.mtu = pa.active_mtu >= IBV_MTU_256 && pa.active_mtu <= IBV_MTU_4096 ? 128u << pa.active_mtu : 0;
	d->attr.max_msg = pa.max_msg_sz;
	d->attr.max_qp_wr = da.max_qp_wr;
	d->attr.max_cqe = da.max_cqe;
	return 0;
}

// probe_inline finds how much of 256 bytes a queue pair takes inline: no verb
// tells, and a device refuses to make a pair that wants more.
static int
probe_inline(struct mv_device *d, const char **step)
{
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	uint32_t want;

	*step = "ibv_create_cq";
	RETRY_PTR(cq, lib.create_cq(d->ctx, 2, NULL, NULL, 0));
	if (!cq)
		return error_number();
	for (want = 256;; want /= 2) {
		struct ibv_qp_init_attr a = {
			.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
			.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = want },
		};
		RETRY_PTR(qp, lib.create_qp(d->pd, &a));
		if (qp || want < 16)
			break;
	}
	d->attr.max_inline = qp ? want : 0;
	if (qp)
		lib.destroy_qp(qp);
	lib.destroy_cq(cq);
	return 0; // a device that makes no pair at all says why when one is asked for
}

int
mv_open(const char *name, uint8_t port, uint8_t gid_index, struct mv_device **out, const char **step)
{
	struct ibv_device **list;
	struct mv_device *d;
	int i, rc;

	d = calloc(1, sizeof(*d));
	*step = "allocate memory";
	if (!d)
		return ENOMEM;
	d->port = port;
	d->gid_index = gid_index;
	*step = "ibv_get_device_list";
	RETRY_PTR(list, lib.get_device_list(NULL));
	if (!list) {
		rc = error_number();
		free(d);
		return rc;
	}
	rc = ENODEV;
	for (i = 0; list[i]; i++) {
		if (strcmp(list[i]->name, name))
			continue;
		*step = "ibv_open_device";
		RETRY_PTR(d->ctx, lib.open_device(list[i]));
		rc = d->ctx ? 0 : error_number();
		break;
	}
	lib.free_device_list(list);
	if (rc == 0) {
		*step = "ibv_alloc_pd";
		RETRY_PTR(d->pd, lib.alloc_pd(d->ctx));
		if (!d->pd)
			rc = error_number();
	}
	if (rc == 0) {
		*step = "fcntl";
		d->async_fd = d->ctx->async_fd;
		rc = nonblocking(d->async_fd);
	}
	if (rc == 0)
		rc = query(d, step);
	if (rc == 0)
		rc = probe_inline(d, step);
	if (rc) {
		mv_close(d);
		return rc;
	}
	*out = d;
	return 0;
}

int
mv_close(struct mv_device *d)
{
	int rc = 0, e;

	if (d->pd)
		RETRY(rc, lib.dealloc_pd(d->pd));
	if (d->ctx) {
		e = lib.close_device(d->ctx);
		if (rc == 0)
			rc = e;
	}
	free(d->send);
	free(d->recv);
	free(d->lists);
	free(d);
	return rc;
}

// lists is the verbs' form of what is posted. The requests stay linked: entry i
// points to i+1, and a post cuts the chain after its last one.
struct list_entry {
	struct ibv_send_wr send;
	struct ibv_recv_wr recv;
	struct ibv_sge sge;
};

int
mv_depth(struct mv_device *d, uint32_t n)
{
	struct mv_send *send;
	struct mv_recv *recv;
	struct list_entry *l;
	uint32_t i;

	if (n <= d->depth)
		return 0;
	send = calloc(n, sizeof(*send));
	recv = calloc(n, sizeof(*recv));
	l = calloc(n, sizeof(*l));
	if (!send || !recv || !l) {
		free(send);
		free(recv);
		free(l);
		return ENOMEM;
	}
	for (i = 0; i < n; i++) {
		l[i].send.sg_list = &l[i].sge;
		l[i].recv.sg_list = &l[i].sge;
		l[i].send.next = &l[i + 1].send;
		l[i].recv.next = &l[i + 1].recv;
	}
	free(d->send);
	free(d->recv);
	free(d->lists);
	d->send = send;
	d->recv = recv;
	d->lists = l;
	d->depth = n;
	return 0;
}

int
mv_reg(struct mv_device *d, uint64_t addr, uint64_t bytes, struct ibv_mr **mr, uint32_t *lkey, uint32_t *rkey)
{
	RETRY_PTR(*mr, lib.reg_mr(d->pd, (void *)(uintptr_t)addr, bytes, IBV_ACCESS_LOCAL_WRITE));
	if (!*mr)
		return error_number();
	*lkey = (*mr)->lkey;
	*rkey = (*mr)->rkey;
	return 0;
}

int
mv_dereg(struct ibv_mr *mr)
{
	int rc;
	RETRY(rc, lib.dereg_mr(mr));
	return rc;
}

int
mv_cq_create(struct mv_device *d, uint32_t depth, struct mv_cq **out)
{
	struct mv_cq *c;
	int rc;

	c = calloc(1, sizeof(*c));
	if (!c)
		return ENOMEM;
	c->dev = d;
	RETRY_PTR(c->channel, lib.create_comp_channel(d->ctx));
	if (!c->channel) {
		rc = error_number();
		free(c);
		return rc;
	}
	c->fd = c->channel->fd;
	rc = nonblocking(c->fd);
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
mv_cq_arm(struct mv_cq *c)
{
	int rc;

	if (c->armed)
		drain(c);
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
mv_cq_poll(struct mv_cq *c, uint32_t max)
{
	struct ibv_wc raw[MV_POLL];
	struct mv_wc *to = c->dev->wc;
	int i, n;

	n = ibv_poll_cq(c->cq, max, raw);
	for (i = 0; i < n; i++) {
		to[i].id = raw[i].wr_id;
		to[i].status = raw[i].status;
		to[i].bytes = raw[i].byte_len;
		to[i].has_imm = raw[i].wc_flags & IBV_WC_WITH_IMM;
		to[i].imm = be32toh(raw[i].imm_data);
	}
	return n;
}

int
mv_qp_create(struct mv_device *d, struct mv_cq *send, struct mv_cq *recv, uint32_t sends, uint32_t recvs,
             uint32_t max_inline, struct mv_qp **out, const char **step)
{
	struct ibv_qp_init_attr a = {
		.send_cq = send->cq, .recv_cq = recv->cq, .qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = sends, .max_recv_wr = recvs, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = max_inline },
	};
	struct ibv_qp_attr init = { .qp_state = IBV_QPS_INIT, .port_num = d->port };
	struct mv_qp *q;
	int rc;

	*step = "allocate memory";
	q = calloc(1, sizeof(*q));
	if (!q)
		return ENOMEM;
	*step = "ibv_create_qp";
	RETRY_PTR(q->qp, lib.create_qp(d->pd, &a));
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
		.max_dest_rd_atomic = 1,
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
		.max_rd_atomic = 1,
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

int
mv_post_send(struct mv_device *d, struct mv_qp *q, uint32_t n)
{
	struct list_entry *l = d->lists;
	struct ibv_send_wr *bad = NULL;
	uint32_t i;
	int rc;

	for (i = 0; i < n; i++) {
		const struct mv_send *from = &d->send[i];
		struct ibv_send_wr *wr = &l[i].send;

		l[i].sge.addr = from->addr;
		l[i].sge.length = from->len;
		l[i].sge.lkey = from->lkey;
		wr->wr_id = from->id;
		wr->num_sge = from->len != 0;
		wr->opcode = from->flags & MV_IMM ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND;
		wr->imm_data = htobe32(from->imm);
		wr->send_flags = (from->flags & MV_SIGNALED ? IBV_SEND_SIGNALED : 0) | (from->flags & MV_INLINE ? IBV_SEND_INLINE : 0);
	}
	l[n - 1].send.next = NULL;
	rc = ibv_post_send(q->qp, &l[0].send, &bad);
	l[n - 1].send.next = &l[n].send;
	d->taken = rc == 0 ? n : 0;
	if (rc && bad) // send is an entry's first member
		d->taken = (uint32_t)((struct list_entry *)bad - l);
	return rc;
}

int
mv_post_recv(struct mv_device *d, struct mv_qp *q, uint32_t n)
{
	struct list_entry *l = d->lists;
	struct ibv_recv_wr *bad = NULL;
	uint32_t i;
	int rc;

	for (i = 0; i < n; i++) {
		const struct mv_recv *from = &d->recv[i];

		l[i].sge.addr = from->addr;
		l[i].sge.length = from->len;
		l[i].sge.lkey = from->lkey;
		l[i].recv.wr_id = from->id;
		l[i].recv.num_sge = from->len != 0;
	}
	l[n - 1].recv.next = NULL;
	rc = ibv_post_recv(q->qp, &l[0].recv, &bad);
	l[n - 1].recv.next = &l[n].recv;
	d->taken = rc == 0 ? n : 0;
	if (rc && bad)
		d->taken = (uint32_t)((struct list_entry *)((char *)bad - offsetof(struct list_entry, recv)) - l);
	return rc;
}

int
mv_event(struct mv_device *d, struct mv_event *e)
{
	struct ibv_async_event ev;

	while (lib.get_async_event(d->ctx, &ev)) {
		if (errno == EAGAIN)
			return 0;
		if (errno != EINTR)
			return -error_number();
	}
	e->type = ev.event_type;
	e->text = lib.event_type_str(ev.event_type);
	e->kind = MV_EVENT_OTHER;
	e->num = 0;
	switch (ev.event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
		e->kind = MV_EVENT_QP_FATAL;
		e->num = ev.element.qp->qp_num;
		break;
	case IBV_EVENT_CQ_ERR:
		e->kind = MV_EVENT_CQ;
		break;
	case IBV_EVENT_DEVICE_FATAL:
		e->kind = MV_EVENT_DEVICE_FATAL;
		break;
	case IBV_EVENT_PORT_ERR:
		e->kind = MV_EVENT_PORT_DOWN;
		e->num = ev.element.port_num;
		break;
	case IBV_EVENT_PORT_ACTIVE:
		e->kind = MV_EVENT_PORT_UP;
		e->num = ev.element.port_num;
		break;
	default:
		break;
	}
	// At once: destroying what an event concerns waits for this.
	lib.ack_async_event(&ev);
	return 1;
}
