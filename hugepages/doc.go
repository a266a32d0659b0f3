// Package hugepages is the memory under the data path: arenas of huge pages
// outside the Go heap, pools that cut them into slots, and Buf, a
// reference-counted window onto one slot.
//
// # Why off-heap memory
//
//   - A device or another process keeps the address. A registered memory region,
//     an AF_XDP UMEM and a poll-mode port's ring hold on to a buffer long after
//     the call that named it has returned. Go's rules (cmd/cgo, "Passing
//     pointers") forbid that for heap memory unless each object is pinned for as
//     long; runtime.Pinner costs per object and per message. An Arena never moves
//     and is registered once, whole.
//   - Lifetime is not reachability. A buffer is in use while the wire has it, not
//     while a Go pointer to it lives. Reference counts say when it may be written
//     again, and the count by Purpose says who still holds memory; a garbage
//     collector says neither.
//   - Bounded memory. An arena's size is fixed, so that "no room" is an answer
//     (ErrExhausted, to be turned into back-pressure) and not a growing heap.
//   - No garbage collection of payloads. Gigabytes of message bytes neither count
//     towards GOGC nor get swept; Get and Release allocate nothing.
//   - Address translation. 64 MiB are 16,384 ordinary pages and 32 huge ones of
//     2 MiB: fewer TLB misses of the CPU, and fewer entries in an adapter's
//     translation cache.
//
// The price is manual memory management. It is paid for with checks: releasing
// more often than retained panics with purpose and class in every build, and the
// build tag invariants makes every stale access to a Buf panic and finds writes
// to released slots (see invariants_on.go). Arena.Close names by purpose what is
// still out.
//
// # Parts
//
// An Arena is one mapping; NewArena tries explicit huge pages (MAP_HUGETLB), then
// transparent ones (MADV_HUGEPAGE), then ordinary pages, and Arena.Report says
// which it got, why not a better one, and how to mend that. Several pools may cut
// chunks from one arena, so that each loop has a pool of its own and a device one
// registration. A Pool serves Get from a lock-free stack of free slots for each
// size class; class.go has the arithmetic.
//
// # Locks
//
// Get and Release take none unless a class has run out of free slots. Then the
// order is Pool.mu before Arena.mu.
package hugepages
