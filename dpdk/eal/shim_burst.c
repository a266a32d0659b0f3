//go:build dpdk && cgo

#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_spinlock.h>

#include "shim.h"

// ETH_MEMIF_FLAG_CONNECTED of drivers/net/memif/rte_eth_memif.h.
#define MEMIF_CONNECTED 2u

// guard_enter keeps net_memif's disconnect, which runs on libdpdk's interrupt
// thread when the peer goes, from unmapping the shared regions under a burst.
//
// memif_disconnect() clears CONNECTED, then takes and releases cc_lock, then
// unmaps. A burst that holds cc_lock therefore ends before the regions go; one
// that takes the lock after the disconnect released it sees CONNECTED cleared.
static inline int
guard_enter(struct mr_port *p)
{
	if (p->guard == NULL)
		return 1;
	if (unlikely(p->down))
		return 0;
	rte_spinlock_lock((rte_spinlock_t *)p->guard);
	if (likely(*p->guard_flags & MEMIF_CONNECTED)) {
		p->was_up = 1;
		return 1;
	}
	rte_spinlock_unlock((rte_spinlock_t *)p->guard);
	// An interface serves one peer process and never a second one.
	if (p->was_up)
		p->down = 1;
	return 0;
}

static inline void
guard_leave(struct mr_port *p)
{
	if (p->guard != NULL)
		rte_spinlock_unlock((rte_spinlock_t *)p->guard);
}

// count is what mr_count reads: only the owner writes, so it need not be one step.
static inline void
count(uint64_t *counter, uint32_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

uint64_t
mr_count(const uint64_t *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static inline void
refill(struct mr_port *p)
{
	struct rte_mbuf *m[MR_BURST];
	uint32_t want = MR_BURST - p->n_alloc, i;

	// rte_pktmbuf_alloc_bulk gives all or nothing.
	while (want > 0 && rte_pktmbuf_alloc_bulk(p->pool, m, want) != 0)
		want /= 2;
	if (want == 0)
		count(&p->no_mbuf, 1);
	for (i = 0; i < want; i++) {
		struct mr_slot *s = &p->alloc[p->n_alloc++];

		s->mbuf = (uint64_t)(uintptr_t)m[i];
		s->data = rte_pktmbuf_mtod(m[i], uint8_t *);
		s->len = 0;
		s->room = rte_pktmbuf_tailroom(m[i]);
	}
}

void
mr_burst(struct mr_port *p)
{
	struct rte_mbuf *m[MR_BURST];
	uint32_t i, n, sent = 0, got = 0;

	n = p->n_tx;
	for (i = 0; i < n; i++) {
		m[i] = (struct rte_mbuf *)(uintptr_t)p->tx[i].mbuf;
		m[i]->data_len = (uint16_t)p->tx[i].len;
		m[i]->pkt_len = p->tx[i].len;
	}
	if (guard_enter(p)) {
		if (n > 0)
			sent = rte_eth_tx_burst(p->port_id, p->queue, m, n);
		if (p->n_rx == 0)
			got = rte_eth_rx_burst(p->port_id, p->queue, m, MR_BURST);
		guard_leave(p);
	}
	p->n_tx = sent;
	count(&p->tx_frames, sent);
	count(&p->rx_frames, got);

	for (i = 0; i < got; i++) {
		struct mr_slot *s = &p->rx[p->n_rx];

		if (unlikely(m[i]->nb_segs != 1)) {
			count(&p->chained, 1);
			rte_pktmbuf_free(m[i]);
			continue;
		}
		s->mbuf = (uint64_t)(uintptr_t)m[i];
		s->data = rte_pktmbuf_mtod(m[i], uint8_t *);
		s->len = m[i]->data_len;
		s->room = m[i]->data_len + rte_pktmbuf_tailroom(m[i]);
		p->n_rx++;
	}

	for (i = 0; i < p->n_free; i++)
		m[i] = (struct rte_mbuf *)(uintptr_t)p->free[i];
	if (p->n_free > 0) {
		rte_pktmbuf_free_bulk(m, p->n_free);
		p->n_free = 0;
	}
	if (p->n_alloc < MR_BURST / 2)
		refill(p);
}
