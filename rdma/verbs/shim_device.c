//go:build verbs && cgo

// Loading the library; devices, memory and events.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>

#include "library.h"

struct mv_library mv_lib;

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

int
mv_nonblocking(int fd)
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
	d->attr.max_srq_wr = da.max_srq > 0 && da.max_srq_wr > 0 ? da.max_srq_wr : 0;
	d->attr.max_rd_atomic = da.max_qp_init_rd_atom > 0 ? da.max_qp_init_rd_atom : 0;
	d->attr.max_dest_rd_atomic = da.max_qp_rd_atom > 0 ? da.max_qp_rd_atom : 0;
	d->attr.atomics = da.atomic_cap != IBV_ATOMIC_NONE;
	return 0;
}

// probe_inline finds how much of 256 bytes a queue pair takes inline: no verb
// tells, and a device refuses to make a pair that wants more.
static int
probe_inline(struct mv_device *d, const char **step)
{
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	uint32_t want;
	int rc;

	*step = "ibv_alloc_pd";
	rc = mv_pd_alloc(d, &pd);
	if (rc)
		return rc;
	*step = "ibv_create_cq";
	RETRY_PTR(cq, lib.create_cq(d->ctx, 2, NULL, NULL, 0));
	if (!cq) {
		rc = error_number();
		mv_pd_dealloc(pd);
		return rc;
	}
	for (want = 256;; want /= 2) {
		struct ibv_qp_init_attr a = {
			.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
			.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = want },
		};
		RETRY_PTR(qp, lib.create_qp(pd, &a));
		if (qp || want < 16)
			break;
	}
	d->attr.max_inline = qp ? want : 0;
	if (qp)
		lib.destroy_qp(qp);
	lib.destroy_cq(cq);
	mv_pd_dealloc(pd);
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
	rc = mv_make_lists(d);
	if (rc) {
		free(d);
		return rc;
	}
	*step = "ibv_get_device_list";
	RETRY_PTR(list, lib.get_device_list(NULL));
	if (!list) {
		rc = error_number();
		mv_close(d);
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
		*step = "fcntl";
		d->async_fd = d->ctx->async_fd;
		rc = mv_nonblocking(d->async_fd);
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
	int rc = 0;

	if (d->ctx)
		rc = lib.close_device(d->ctx);
	free(d->lists);
	free(d);
	return rc;
}

int
mv_pd_alloc(struct mv_device *d, struct ibv_pd **out)
{
	RETRY_PTR(*out, lib.alloc_pd(d->ctx));
	return *out ? 0 : error_number();
}

int
mv_pd_dealloc(struct ibv_pd *pd)
{
	int rc;
	RETRY(rc, lib.dealloc_pd(pd));
	return rc;
}

int
mv_reg(struct ibv_pd *pd, uint64_t addr, uint64_t bytes, uint32_t access, struct ibv_mr **mr, uint32_t *lkey,
       uint32_t *rkey)
{
	RETRY_PTR(*mr, lib.reg_mr(pd, (void *)(uintptr_t)addr, bytes, IBV_ACCESS_LOCAL_WRITE | mv_access(access)));
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
mv_event(struct mv_device *d, struct mv_event *e)
{
	struct ibv_async_event ev;

	while (lib.get_async_event(d->ctx, &ev)) {
		if (errno == EAGAIN)
			return 0;
		if (errno != EINTR)
			return -error_number();
	}
	memset(e, 0, sizeof(*e));
	e->text = lib.event_type_str(ev.event_type);
	e->kind = MV_EVENT_OTHER;
	switch (ev.event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
		e->kind = MV_EVENT_QP_FATAL;
		e->num = ev.element.qp->qp_num;
		break;
	case IBV_EVENT_COMM_EST:
		e->kind = MV_EVENT_COMM_EST;
		e->num = ev.element.qp->qp_num;
		break;
	case IBV_EVENT_QP_LAST_WQE_REACHED:
		e->kind = MV_EVENT_LAST_WQE;
		e->num = ev.element.qp->qp_num;
		break;
	case IBV_EVENT_SRQ_LIMIT_REACHED:
		e->kind = MV_EVENT_SRQ_LIMIT;
		e->srq = (uintptr_t)ev.element.srq->srq_context;
		break;
	case IBV_EVENT_DEVICE_FATAL:
	case IBV_EVENT_CQ_ERR: // the completions of some or all queue pairs are lost
	case IBV_EVENT_SRQ_ERR:
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
