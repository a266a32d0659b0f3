//go:build dpdk && cgo

#define ALLOW_EXPERIMENTAL_API // memory that is not libdpdk's
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_memory.h>

#include "shim.h"

// Frames in memory that is not libdpdk's: each mbuf lies in libdpdk's memory and has,
// for good, a buffer in the caller's (a "pinned external buffer").

static uint32_t
room(const struct mr_config *c)
{
	return c->frame_bytes + RTE_PKTMBUF_HEADROOM;
}

uint32_t
mr_frame_stride(const struct mr_config *c)
{
	uint32_t aligned = RTE_ALIGN_CEIL(room(c), RTE_CACHE_LINE_SIZE);

	return aligned <= UINT16_MAX ? aligned : room(c); // what struct rte_pktmbuf_extmem can say
}

void
mr_memory_take(struct mr_memory *m, uint16_t port_id)
{
	uint64_t pages = m->bytes / m->page, i;
	struct rte_eth_dev_info info;
	rte_iova_t *iova = malloc(pages * sizeof(*iova));

	m->refused = 0;
	if (iova == NULL) {
		m->refused = -ENOMEM;
		return;
	}
	// A device that is given virtual addresses, or no device at all.
	for (i = 0; i < pages; i++)
		iova[i] = (uintptr_t)m->base + i * m->page;
	rte_errno = 0;
	if (rte_extmem_register(m->base, m->bytes, iova, pages, m->page) == 0)
		m->registered = 1;
	else
		m->refused = rte_errno ? -rte_errno : -EINVAL;
	free(iova);
	if (!m->registered)
		return;
	m->refused = rte_eth_dev_info_get(port_id, &info);
	if (m->refused == 0) {
		rte_errno = 0;
		if (rte_dev_dma_map(info.device, m->base, (uintptr_t)m->base, m->bytes) == 0) {
			m->device = info.device;
			m->mapped = 1;
		} else if (rte_errno != ENOTSUP) { // ENOTSUP: it needs no mapping
			m->refused = rte_errno ? -rte_errno : -EIO;
		}
	}
	if (m->refused != 0)
		mr_memory_release(m);
}

void
mr_memory_release(struct mr_memory *m)
{
	if (m->mapped)
		rte_dev_dma_unmap(m->device, m->base, (uintptr_t)m->base, m->bytes);
	if (m->registered)
		rte_extmem_unregister(m->base, m->bytes);
	m->mapped = m->registered = 0;
}

static const char pool_ops[] = "millrace_lifo"; // shim_pool.c

// rte_pktmbuf_pool_create_extbuf takes the process's preferred kind of pool, which is
// changed for this call alone: the calls that make and remove devices and pools are
// never concurrent.
static struct rte_mempool *
external_pool(const char *name, uint32_t mbufs, const struct mr_config *c, const struct rte_pktmbuf_extmem *ext)
{
	char was[RTE_MEMPOOL_OPS_NAMESIZE];
	struct rte_mempool *mp;
	int ret;

	strncpy(was, rte_mbuf_best_mempool_ops(), sizeof(was) - 1);
	was[sizeof(was) - 1] = 0;
	ret = rte_mbuf_set_user_mempool_ops(pool_ops);
	if (ret != 0) {
		rte_errno = -ret;
		return NULL;
	}
	mp = rte_pktmbuf_pool_create_extbuf(name, mbufs, 0, 0, room(c), SOCKET_ID_ANY, ext, 1);
	ret = rte_errno;
	rte_mbuf_set_user_mempool_ops(was);
	rte_errno = ret;
	return mp;
}

void *
mr_pool(const char *name, const struct mr_port *p, const struct mr_config *c, const struct mr_memory *m, uint32_t i)
{
	struct rte_pktmbuf_extmem ext;

	if (m->base == NULL || m->refused != 0)
		return rte_pktmbuf_pool_create_by_ops(name, p->mbufs, 0, 0, room(c), SOCKET_ID_ANY, pool_ops);
	memset(&ext, 0, sizeof(ext));
	ext.buf_ptr = m->base + i * m->queue_bytes;
	ext.buf_iova = (uintptr_t)ext.buf_ptr;
	ext.buf_len = m->queue_bytes;
	ext.elt_size = (uint16_t)mr_frame_stride(c);
	return external_pool(name, p->mbufs, c, &ext);
}
