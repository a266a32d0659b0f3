// One RDMA device of libibverbs. The library is loaded at run time, so nothing
// here links against it. All memory named here is C memory; Go fills the lists of
// struct mv_device and reads its completions between two calls, on the device's
// one goroutine, so neither side needs atomics.
//
// Functions that return int return 0 or an errno, unless they say otherwise. None
// of them returns EINTR: Go's runtime interrupts system calls with SIGURG.
#ifndef MILLRACE_VERBS_SHIM_H
#define MILLRACE_VERBS_SHIM_H

#include <stdint.h>

struct ibv_mr;

// Completions taken from a queue by one call at most.
#define MV_POLL 64

struct mv_send {
	uint64_t id;
	uint64_t addr;
	uint32_t len;
	uint32_t lkey;
	uint32_t imm;   // host order
	uint32_t flags; // MV_IMM, MV_SIGNALED, MV_INLINE
};

enum { MV_IMM = 1, MV_SIGNALED = 2, MV_INLINE = 4 };

struct mv_recv {
	uint64_t id;
	uint64_t addr;
	uint32_t len;
	uint32_t lkey;
};

struct mv_wc {
	uint64_t id;
	uint32_t status; // enum ibv_wc_status
	uint32_t bytes;
	uint32_t imm; // host order
	uint32_t has_imm;
};

struct mv_event {
	uint32_t type; // enum ibv_event_type
	uint32_t num;  // queue pair number or port
	const char *text;
	uint32_t kind; // MV_EVENT_*
};

enum { MV_EVENT_OTHER, MV_EVENT_QP_FATAL, MV_EVENT_CQ, MV_EVENT_DEVICE_FATAL, MV_EVENT_PORT_DOWN, MV_EVENT_PORT_UP };

struct mv_attr {
	uint32_t active; // the port is ACTIVE
	uint32_t mtu;    // bytes
	uint32_t max_msg, max_qp_wr, max_cqe;
	uint32_t max_inline; // of a queue pair, as far as it was asked for
	uint32_t gid_type;   // 0 IB, 1 RoCEv1, 2 RoCEv2, 3 unknown
	uint8_t gid[16];
};

struct mv_device {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	int async_fd;
	uint8_t port;
	uint8_t gid_index;
	struct mv_attr attr;

	uint32_t depth;       // entries of send and recv
	struct mv_send *send; // what the next mv_post_send posts
	struct mv_recv *recv; // what the next mv_post_recv posts
	uint32_t taken;       // out: of the last post
	void *lists;          // the verbs' form of both

	struct mv_wc wc[MV_POLL];
};

struct mv_cq {
	struct ibv_cq *cq;
	struct ibv_comp_channel *channel;
	struct mv_device *dev;
	int fd; // of the channel
	uint32_t depth;
	uint32_t armed;
	uint32_t unacked; // events taken and not yet acknowledged
};

struct mv_qp {
	struct ibv_qp *qp;
	uint32_t num;
};

// mv_load loads the library, and makes forks safe before anything else is called.
// NULL, or why it cannot. It may be called again.
const char *mv_load(void);

// mv_fork is what it found: 0 forks are not safe, 1 made so by MADV_DONTFORK, 2
// safe by themselves.
int mv_fork(void);

// mv_open opens a device; ENODEV if the library does not list it. On failure *step
// says what failed.
int mv_open(const char *name, uint8_t port, uint8_t gid_index, struct mv_device **out, const char **step);
int mv_close(struct mv_device *d);

// mv_depth makes room for lists of n requests.
int mv_depth(struct mv_device *d, uint32_t n);

int mv_reg(struct mv_device *d, uint64_t addr, uint64_t bytes, struct ibv_mr **mr, uint32_t *lkey, uint32_t *rkey);
int mv_dereg(struct ibv_mr *mr);

int mv_cq_create(struct mv_device *d, uint32_t depth, struct mv_cq **out);
int mv_cq_destroy(struct mv_cq *c);
// mv_cq_arm drains the channel and asks for the next event.
int mv_cq_arm(struct mv_cq *c);
// mv_cq_poll fills dev->wc with at most max completions; how many, or -errno.
int mv_cq_poll(struct mv_cq *c, uint32_t max);

// mv_qp_create makes a queue pair and takes it to INIT.
int mv_qp_create(struct mv_device *d, struct mv_cq *send, struct mv_cq *recv, uint32_t sends, uint32_t recvs,
                 uint32_t max_inline, struct mv_qp **out, const char **step);
int mv_qp_destroy(struct mv_qp *q);

struct mv_remote {
	uint8_t gid[16];
	uint32_t qpn, psn;
	uint32_t mtu; // bytes
	// of this end:
	uint32_t sq_psn;
	uint8_t min_rnr_timer, timeout, retry_cnt, rnr_retry;
};

int mv_qp_connect(struct mv_device *d, struct mv_qp *q, const struct mv_remote *r, const char **step);
int mv_qp_error(struct mv_qp *q);

// mv_post_send and mv_post_recv post the first n of the device's list, n at least
// 1 and at most depth; dev->taken says how many were.
int mv_post_send(struct mv_device *d, struct mv_qp *q, uint32_t n);
int mv_post_recv(struct mv_device *d, struct mv_qp *q, uint32_t n);

// mv_event takes one asynchronous event: 1, 0 if there is none, or -errno.
int mv_event(struct mv_device *d, struct mv_event *e);

#endif
